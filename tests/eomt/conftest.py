"""Own data and a trained run of each task, written once and only read."""

import contextlib

import pytest

from tests.eomt.trained import OPTIONS, train, write_data
from tests.once import once


@pytest.fixture(scope="session")
def own_data(tmp_path_factory):
    """A folder with "panoptic" (COCO), "semantic" (label maps) and "instance" (an export of Roboflow)."""
    return once(tmp_path_factory, "own-data", write_data)


@pytest.fixture(scope="session")
def runs(tmp_path_factory, own_data, undrawn_curves):
    """A folder with the run of each task by `eomt train`, and its output in printed.txt."""

    def make(root):
        for task, options in OPTIONS.items():
            (root / task).mkdir(parents=True)
            with (root / task / "printed.txt").open("w") as file, contextlib.redirect_stdout(file):
                assert train(own_data / task, root / task, task, *options.split()) == 0

    return once(tmp_path_factory, "runs", make)
