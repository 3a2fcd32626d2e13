"""Behind the page, without Gradio: kept logits, limits, views, files, what a command line can get wrong."""

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from eomt.app.downloads import write_files
from eomt.app.limits import Limits, open_upload
from eomt.app.models import VIEWS, find_models
from eomt.app.predictor import Predictor, Thresholds, segments
from eomt.app.views import figure, id_map, named_segments
from eomt.cli import main
from eomt.visualization import class_colors
from tests.app.folders import NAMES, hostile, photo, save_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("app")
    for task in VIEWS:
        save_model(folder / task, task)
    photo(folder / "photo.png")
    return folder


def predictor(folder, *tasks, **limits) -> Predictor:
    return Predictor(find_models([str(folder / task) for task in tasks]), Limits(**limits))


@pytest.mark.parametrize("task", VIEWS)
def test_every_view_of_one_run(folder, task, tmp_path):
    served = predictor(folder, task)
    for view in VIEWS[task]:
        for score in (0.1, 0.9):
            photo = served.photo(folder / "photo.png")
            model = served.model(None)
            found = segments(model, photo, view, Thresholds(score=score))
            coded, named = id_map(view, found), named_segments(view, found, dict(enumerate(NAMES)))
            assert coded.shape == (60, 80, 3)
            assert set(np.unique(coded[..., 0]).tolist()) - {0} <= {one.number for one in named}
            assert all(one.name == NAMES[one.label] for one in named)
            assert coded[..., 2].any() == (view == "confidence")
            drawn = figure("a & b", view, found, photo.image, dict(enumerate(NAMES)), class_colors(range(5)))
            assert f'data-view="{view}"' in drawn
            assert "<figcaption>a &amp; b<" in drawn
        files = write_files(tmp_path, "photo.png", view, found, photo.image, model.load().config)
        data, png = json.loads(files[1].read_text()), np.asarray(Image.open(files[2]))
        assert [c["name"] for c in data["categories"]] == list(NAMES)
        assert png.shape[:2] == (60, 80)
        assert Image.open(files[0]).width >= 80
        if view == "instance":
            coco = COCO(files[1])
            assert all(coco.annToMask(a).sum() == a["area"] for a in coco.anns.values())
            assert set(np.unique(png)) - {0} <= set(coco.anns)
        if view == "panoptic":
            ids = {s["id"] for s in data["annotations"][0]["segments_info"]}
            assert set(np.unique(png[..., 0])) - {0} == ids
            assert len(ids) == 3
    assert served.runs == 1


def test_thresholds_act(folder):
    served = predictor(folder, "instance")
    counts = [
        len(segments(served.model(None), served.photo(folder / "photo.png"), "instance", Thresholds(score=s))["masks"])
        for s in (0.0, 0.5, 1.0)
    ]
    assert counts[0] > counts[1] > counts[2] == 0


def test_old_photos_make_room(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("eomt.app.predictor.KEPT_BYTES", 100_000)
    served = predictor(folder, "panoptic")
    files = [photo(tmp_path / f"{seed}.png", (200, 200), seed) for seed in range(3)]
    for file in (*files, files[2], files[0]):
        served.photo(file)
    assert served.runs == 4  # the last was kept, the first was not


def test_unusable_uploads_are_one_line(tmp_path):
    for message, file in hostile(tmp_path).items():
        with pytest.raises(ValueError, match=message) as caught:
            open_upload(file, Limits())
        assert str(tmp_path) not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_two_at_once_run_the_model_once(folder, monkeypatch):
    """And a photo that failed is tried again."""
    served = predictor(folder, "panoptic")
    run, slow = served._run, lambda *args: time.sleep(0.2) or run(*args)
    monkeypatch.setattr(served, "_run", slow)
    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(served.photo, [folder / "photo.png"] * 4)
    assert served.runs == 1
    assert all(other is first for other in others)

    def fails(*args):
        raise RuntimeError("out of memory")

    again = predictor(folder, "panoptic")
    monkeypatch.setattr(again, "_run", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        again.photo(folder / "photo.png")
    monkeypatch.undo()
    assert again.photo(folder / "photo.png").image.size == (80, 60)


def test_unknown_model_view_and_file(folder, tmp_path):
    served = predictor(folder, "panoptic", "semantic")
    with pytest.raises(ValueError, match=r"gone\.png is no longer on the server; add it again"):
        served.photo(tmp_path / "gone.png")
    assert list(served.models) == ["panoptic, PyTorch", "semantic, PyTorch"]
    with pytest.raises(ValueError, match="there is no model 'x'; choose from panoptic, PyTorch, semantic, PyTorch"):
        served.model("x")
    with pytest.raises(ValueError, match="semantic, PyTorch has no panoptic view; choose from semantic, confidence"):
        segments(served.model("semantic, PyTorch"), None, "panoptic", Thresholds())


def test_engines_that_are_installed(folder, exported):
    for name in ("openvino", "onnxruntime", "onnxscript"):
        pytest.importorskip(name)
    served = Predictor(find_models([str(exported / "model"), str(exported / "out")]), Limits())
    assert list(served.models) == ["model, PyTorch", "out, OpenVINO", "out, ONNX Runtime", "out, torch.export"]
    maps = [
        segments(model, served.photo(folder / "photo.png", name), "panoptic", Thresholds(score=0.3))["segmentation"]
        for name, model in served.models.items()
    ]
    for other in maps[1:]:
        assert (maps[0] != other).float().mean() < 0.01


def test_command_line_errors_are_one_line(folder, tmp_path, capsys, monkeypatch):
    pytest.importorskip("gradio")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for options, message in (
            (
                [str(folder / "panoptic"), "--port", port],
                f"port {port} of 127.0.0.1 cannot be used (Address already in use)",
            ),
            ([str(tmp_path / "missing")], "there is no model in"),
            ([str(folder / "panoptic"), "--requests", "0"], "--requests 0: give at least 1"),
            ([str(folder / "panoptic"), "--port", "70000"], "--port 70000: give at most 65535"),
            ([str(folder / "panoptic"), "--host", "no.such.host.invalid"], "choose another --port"),
        ):
            assert main(["serve", *options]) == 2
            error = capsys.readouterr().err
            assert message in error
            assert error.count("\n") == 1
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["serve", str(folder / "panoptic")]) == 2
    assert "the page needs Gradio: pip install '.[app]' in the checkout" in capsys.readouterr().err
