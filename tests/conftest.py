"""What several folders of tests share."""

import gc

import pytest

from eomt import EoMTImageProcessor
from eomt.cli import main
from eomt.engines import ENGINES, OpenVINOEngine
from eomt.training import callbacks
from eomt.training.callbacks import plot_curves
from tests.models import make_confident, save_confident, tiny_model
from tests.once import once
from tests.predicting import STUFF, write_photos


def pytest_collection_finish():
    """What was imported is not looked through again at every collection; each training makes several."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def undrawn_curves():
    """Drawing takes most of a tiny run; only that of `demo_folder` is drawn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callbacks, "plot_curves", lambda log_history, path: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def kept_engines():
    """OpenVINO's models keep each other's signal stack: dropped in the order of loading, the next signal kills."""
    kept, load = [], OpenVINOEngine.__init__

    def keep(engine, *args, **kwargs):
        kept.append(engine)
        load(engine, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OpenVINOEngine, "__init__", keep)
        yield


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory, undrawn_curves):
    """What `eomt demo` writes, with a handful of images and steps."""

    def make(folder):
        options = ["--output", str(folder), "--steps", "4", "--train-images", "16", "--val-images", "4"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(callbacks, "plot_curves", plot_curves)
            assert main(["demo", *options]) == 0

    return once(tmp_path_factory, "demo", make)


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """`model`, saved with its masks on, and `out`: exported for every engine."""

    def make(folder):
        save_confident(folder / "model", num_labels=8, masking=1.0)  # as many labels as the synthetic shapes have
        assert main(["export", str(folder / "model"), str(folder / "out"), "--format", *ENGINES]) == 0

    return once(tmp_path_factory, "exported", make)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Tiny models that are sure of their classes, by task: folders."""
    directories = {}
    for task in ("panoptic", "instance", "semantic"):
        queries = 3 if task == "panoptic" else 12  # few do not cover each other
        model = tiny_model(num_queries=queries, seed=3, task=task, stuff_label_ids=STUFF if task == "panoptic" else [])
        make_confident(model)
        model.set_attn_mask_probs([0.0] * 2)
        model.save_pretrained(directories.setdefault(task, tmp_path_factory.mktemp(task)))
        EoMTImageProcessor(task=task, size=64, stuff_label_ids=STUFF).save_pretrained(directories[task])
    return directories


@pytest.fixture
def photos(tmp_path):
    return write_photos(tmp_path / "photos")
