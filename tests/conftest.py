"""What several folders of tests share."""

import pytest


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory):
    """What `eomt demo` writes, with a handful of images and steps."""
    from eomt.cli import main

    folder = tmp_path_factory.mktemp("demo") / "runs/demo"
    options = ["--output", str(folder), "--steps", "4", "--train-images", "16", "--val-images", "4"]
    assert main(["demo", *options]) == 0
    return folder
