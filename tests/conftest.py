"""Fixtures of several folders of tests. They import inside, because pytest-xdist's main process needs none of it."""

import gc

import pytest

from tests.once import once


def pytest_collection_finish():
    """Exclude imported objects from garbage collection, which runs several times in each training."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def undrawn_curves():
    """Turn the drawing of curves off, which takes most of a tiny run. Yields the function, for `demo_folder`."""
    from eomt.training import callbacks

    draw = callbacks.plot_curves
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callbacks, "plot_curves", lambda log_history, path: None)
        yield draw


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory, undrawn_curves):
    """The folder of `eomt demo` with a few images and steps."""
    from eomt.cli import main
    from eomt.training import callbacks

    def make(folder):
        options = ["--output", str(folder), "--steps", "2", "--train-images", "16", "--val-images", "4"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(callbacks, "plot_curves", undrawn_curves)
            assert main(["demo", *options]) == 0

    return once(tmp_path_factory, "demo", make)


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """A folder with `model`, saved with masks on, and `out`, its export for every engine."""
    from eomt.cli import main
    from eomt.engines import ENGINES
    from tests.models import save_confident

    def make(folder):
        save_confident(folder / "model", num_labels=8, masking=1.0)  # the synthetic shapes have 8 classes
        assert main(["export", str(folder / "model"), str(folder / "out"), "--format", *ENGINES]) == 0

    return once(tmp_path_factory, "exported", make)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """{task: folder of a tiny confident model}."""
    from eomt import EoMTImageProcessor
    from tests.models import make_confident, tiny_model
    from tests.predicting import STUFF

    folders = {}
    for task in ("panoptic", "instance", "semantic"):
        queries = 3 if task == "panoptic" else 12  # masks of few queries do not cover each other
        model = tiny_model(num_queries=queries, seed=3, task=task, stuff_label_ids=STUFF if task == "panoptic" else [])
        make_confident(model)
        model.set_attn_mask_probs([0.0] * 2)
        folders[task] = tmp_path_factory.mktemp(task)
        model.save_pretrained(folders[task])
        EoMTImageProcessor(task=task, size=64, stuff_label_ids=STUFF).save_pretrained(folders[task])
    return folders


@pytest.fixture
def photos(tmp_path):
    from tests.predicting import write_photos

    return write_photos(tmp_path / "photos")
