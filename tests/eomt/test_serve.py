"""`eomt serve`: the documented example of the API, wrong requests, limits, and no access to other files."""

import os
import re
import tempfile
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub.utils import httpx
from PIL import Image

from eomt import EoMTImageProcessor
from eomt.options import ServeOptions
from tests.models import make_confident, tiny_model

# Not importorskip, which would import gradio in the collection of tests, for four seconds in every worker.
pytestmark = pytest.mark.skipif(find_spec("gradio") is None, reason="gradio is not installed")
gradio_client = pytest.importorskip("gradio_client")

GUIDE = Path(__file__).parents[2] / "docs/deployment.md"
NAMES = ("cat", "dog", "boat", "sky", "sea & sand")


def write_image(path: Path, size=(120, 160)) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    Image.fromarray(noise).resize(size[::-1], Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Folder, address and predictor of a page with a tiny confident model."""
    from eomt.serve import Predictor, start

    folder = tmp_path_factory.mktemp("serve")
    model = tiny_model(num_queries=4, seed=5, stuff_label_ids=[3, 4], id2label=dict(enumerate(NAMES)))
    make_confident(model)
    model.config.masked_inference = False
    model.save_pretrained(folder / "panoptic")
    EoMTImageProcessor(task="panoptic", size=64, stuff_label_ids=[3, 4]).save_pretrained(folder / "panoptic")
    write_image(folder / "photo.jpg")
    (folder / "temporary").mkdir()
    before = os.environ.copy(), tempfile.tempdir
    options = ServeOptions(port=free_port(), max_upload=1, max_pixels=1_000_000, device="cpu")
    predictor = Predictor([str(folder / "panoptic")], options)
    page = start(predictor, options, folder / "temporary")
    yield folder, f"http://127.0.0.1:{options.port}/", predictor
    page.close()
    os.environ.clear()
    os.environ.update(before[0])
    tempfile.tempdir = before[1]


@pytest.mark.parametrize("view", ["semantic", "confidence"])
def test_views_of_long_photos_of_a_semantic_model(view, tmp_path):
    """The shown image is smaller than the photo, and would be cut into other windows."""
    from eomt.serve import Predictor, Request

    model = tiny_model(task="semantic", num_labels=5)
    model.config.masked_inference = False
    model.save_pretrained(tmp_path)
    EoMTImageProcessor(task="semantic", size=64).save_pretrained(tmp_path)
    predictor = Predictor([str(tmp_path)], ServeOptions(device="cpu"))
    photo = write_image(tmp_path / "photo.jpg", (700, 2400))
    image, annotations, _ = Request(predictor, str(photo), tmp_path.name, view, 0.5, 0.5, 0.8).draw()
    assert image.size == (1280, 373)
    if view == "semantic":
        assert sum(mask for mask, _ in annotations).shape == (373, 1280)
        assert (sum(mask for mask, _ in annotations) == 1).all()


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_the_example_of_the_guide_runs(server, tmp_path, monkeypatch, capsys):
    folder, address, _ = server
    example = re.search(r"```python\n(from gradio_client.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)[1]
    assert "http://127.0.0.1:7860" in example
    monkeypatch.chdir(folder)
    monkeypatch.setattr(gradio_client, "Client", partial(gradio_client.Client, download_files=str(tmp_path)))
    names = {"__name__": "__main__"}
    exec(example.replace("http://127.0.0.1:7860", address), names)
    assert re.search(r"^dog [01]\.", capsys.readouterr().out, re.MULTILINE)
    assert [segment["label"] for segment in names["result"]["segments"]] == ["dog", "dog", "sea & sand"]
    by_suffix = {Path(file).suffix: file for file in names["files"]}
    assert Image.open(by_suffix[".png"]).size == (160, 120)
    assert Image.open(by_suffix[".jpg"]).width >= 160


def test_wrong_requests_are_one_line_of_error(server, tmp_path):
    folder, address, _ = server
    api = gradio_client.Client(address, verbose=False, download_files=str(tmp_path))
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "cut.png").write_bytes(write_image(tmp_path / "whole.png").read_bytes()[:400])
    Image.new("L", (2000, 2000)).save(tmp_path / "large.png")
    photo = gradio_client.handle_file(str(folder / "photo.jpg"))
    requests = [
        ({"photo": gradio_client.handle_file(str(tmp_path / name))}, name)
        for name in ("text.jpg", "cut.png", "large.png")
    ]
    requests += [({"photo": photo, "model": "x"}, "x"), ({"photo": photo, "view": "depth"}, "depth")]
    for request, word in requests:
        with pytest.raises((gradio_client.exceptions.AppError, ValueError)) as caught:
            api.predict(**request, api_name="/segment")
        assert word in str(caught.value)
        assert str(tmp_path) not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_other_files_and_large_uploads_are_refused(server):
    folder, address, _ = server
    outside = {"path": str(folder / "photo.jpg"), "meta": {"_type": "gradio.FileData"}}
    data = [outside, "panoptic", "panoptic", 0.8, 0.5, 0.8]
    asked = httpx.post(f"{address}gradio_api/call/segment", json={"data": data}).json()
    answer = httpx.get(f"{address}gradio_api/call/segment/{asked['event_id']}", timeout=30).text
    assert "event: error" in answer
    assert "segments" not in answer
    assert httpx.get(f"{address}gradio_api/file={folder / 'photo.jpg'}").status_code == 403
    large = {"files": ("large.bmp", bytes(2 * 2**20))}
    assert httpx.post(f"{address}gradio_api/upload", files=large).status_code == 413


def test_every_view_is_drawn(server):
    from eomt.serve import VIEWS, Request

    folder, _, predictor = server
    for view in VIEWS["panoptic"]:
        request = Request(predictor, str(folder / "photo.jpg"), "panoptic", view, 0.5, 0.5, 0.8)
        _, annotations, _ = request.draw()
        assert (len(annotations) == 0) == (view == "confidence")
    assert len(predictor._outputs) == 1  # the model ran once
