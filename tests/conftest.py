"""What several folders of tests share. Imported inside, as the process that deals out the tests needs none of it."""

import gc

import pytest

from tests.once import once


def pytest_collection_finish():
    """What was imported is not looked through again at every collection; each training makes several."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def undrawn_curves():
    """Drawing takes most of a tiny run; only that of `demo_folder` is drawn. Yields what draws."""
    from eomt.training import callbacks

    draw = callbacks.plot_curves
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callbacks, "plot_curves", lambda log_history, path: None)
        yield draw


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory, undrawn_curves):
    """What `eomt demo` writes, with a handful of images and steps."""
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
    """`model`, saved with its masks on, and `out`: exported for every engine."""
    from eomt.cli import main
    from eomt.engines import ENGINES
    from tests.models import save_confident

    def make(folder):
        save_confident(folder / "model", num_labels=8, masking=1.0)  # as many labels as the synthetic shapes have
        assert main(["export", str(folder / "model"), str(folder / "out"), "--format", *ENGINES]) == 0

    return once(tmp_path_factory, "exported", make)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Tiny models that are sure of their classes, by task: folders."""
    from eomt import EoMTImageProcessor
    from tests.models import make_confident, tiny_model
    from tests.predicting import STUFF

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
    from tests.predicting import write_photos

    return write_photos(tmp_path / "photos")
