"""Own data and one trained run a task, made once and only read."""

import contextlib

import pytest

from tests.eomt.trained import OPTIONS, train, write_data
from tests.once import once


@pytest.fixture(scope="session")
def own_data(tmp_path_factory):
    """Folders "panoptic" (COCO), "semantic" (label maps) and "instance" (as Roboflow exports)."""
    return once(tmp_path_factory, "own-data", write_data)


@pytest.fixture(scope="session")
def runs(tmp_path_factory, own_data, undrawn_curves):
    """A folder a task: what `eomt train` left, and in printed.txt what it said."""

    def make(root):
        for task, options in OPTIONS.items():
            (root / task).mkdir(parents=True)
            with (root / task / "printed.txt").open("w") as file, contextlib.redirect_stdout(file):
                assert train(own_data / task, root / task, task, *options.split()) == 0

    return once(tmp_path_factory, "runs", make)
