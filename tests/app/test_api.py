"""The HTTP API: the example of the documentation, limits, and that files stay in the temporary folder."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.app.folders import hostile, photo, save_model
from tests.app.serving import served

# importorskip would import it while tests are collected: four seconds in every worker.
pytestmark = pytest.mark.skipif(find_spec("gradio") is None, reason="gradio is not installed")
gradio_client = pytest.importorskip("gradio_client")

GUIDE = Path(__file__).parents[2] / "docs/guides/serve.md"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("api")
    (folder / "temporary").mkdir()
    photo(folder / "photo.jpg", (120, 160))
    models = [save_model(folder / "panoptic")]
    with served(models, folder / "temporary", upload_megabytes=1, requests=1, waiting=2) as (address, predictor):
        yield folder, address, predictor


def client(address: str, downloads: Path):
    return gradio_client.Client(address, verbose=False, download_files=str(downloads))


def test_the_guides_example_runs(server, tmp_path, monkeypatch, capsys):
    folder, address, _ = server
    example = re.search(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)[1]
    assert "http://127.0.0.1:7860" in example
    monkeypatch.chdir(folder)
    monkeypatch.setattr(gradio_client, "Client", partial(gradio_client.Client, download_files=str(tmp_path)))
    names = {"__name__": "__main__"}
    exec(example.replace("http://127.0.0.1:7860", address), names)
    assert re.search(r"^dog [01]\.", capsys.readouterr().out, re.MULTILINE)
    assert [segment["label"] for segment in names["result"]["segments"]] == ["dog", "dog", "sea & sand"]
    overlay, data, png = names["files"]
    assert Image.open(png).size == (160, 120)
    assert Image.open(overlay).width >= 160
    assert data.endswith("photo.json")


def test_bad_requests_are_one_line(server, tmp_path):
    folder, address, _ = server
    api = client(address, tmp_path)
    file = gradio_client.handle_file
    cases = [({"photo": file(str(path))}, message) for message, path in hostile(tmp_path).items()]
    cases += [({"photo": file(str(folder / "photo.jpg")), "model": "x"}, "there is no model 'x'; choose from panoptic")]
    cases += [({"photo": file(str(folder / "photo.jpg")), "view": "depth"}, "has no depth view; choose from panoptic")]
    for request, message in cases:
        with pytest.raises(gradio_client.exceptions.AppError, match=re.escape(message)) as caught:
            api.predict(**request, api_name="/segment")
        assert str(tmp_path) not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_only_uploads_are_read_and_only_small_ones_taken(server):
    folder, address, _ = server
    outside = {"path": str(folder / "photo.jpg"), "meta": {"_type": "gradio.FileData"}}
    asked = httpx.post(f"{address}gradio_api/call/segment", json={"data": [outside, "", "", None, 0.5, 0.8]}).json()
    answer = httpx.get(f"{address}gradio_api/call/segment/{asked['event_id']}", timeout=30).text
    assert "event: error" in answer
    assert "segments" not in answer
    assert httpx.get(f"{address}gradio_api/file={folder / 'photo.jpg'}").status_code == 403
    large = {"files": ("large.bmp", bytes(2 * 2**20))}
    assert httpx.post(f"{address}gradio_api/upload", files=large).status_code == 413


def test_without_javascript_the_page_says_so(server):
    assert "<noscript>" in httpx.get(server[1]).text


def test_so_many_at_once_and_so_many_wait(server, tmp_path, monkeypatch):
    folder, address, predictor = server
    api, lock, running, most = client(address, tmp_path), threading.Lock(), 0, 0
    full = threading.Event()  # somebody was sent away

    def slow(path, name=None, original=predictor.photo):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        full.wait(30)
        with lock:
            running -= 1
        return original(path, name)

    monkeypatch.setattr(predictor, "photo", slow)
    jobs = [
        api.submit(photo=gradio_client.handle_file(str(folder / "photo.jpg")), api_name="/segment") for _ in range(8)
    ]
    for job in jobs:
        job.add_done_callback(lambda done: full.set() if done.exception() else None)
    errors = [job.exception(timeout=120) for job in jobs]
    assert most == 1
    assert sum(error is None for error in errors) >= 2
    assert any("queue is full" in str(error).lower() for error in errors if error)


@pytest.mark.slow
def test_nothing_is_left_when_the_server_ends(tmp_path):
    """A process of its own, with a home, a working folder and a folder for temporary files that one can look into."""
    save_model(tmp_path / "model")
    photo(tmp_path / "photo.jpg")
    places = [tmp_path / name for name in ("home", "here", "temporary")]
    for place in places:
        place.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"HOME": str(places[0]), "TMPDIR": str(places[2]), "PYTHONPATH": root}
    environment |= {"HF_HOME": str(tmp_path / "hub"), "MPLCONFIGDIR": str(tmp_path / "matplotlib")}
    command = [sys.executable, "-m", "eomt", "serve", str(tmp_path / "model"), "--port", str(port), "--device", "cpu"]
    with subprocess.Popen(command, cwd=places[1], env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert f"http://127.0.0.1:{port}" in process.stdout.readline()
            for _ in range(100):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.1)
            api = client(f"http://127.0.0.1:{port}", tmp_path / "downloads")
            api.predict(photo=gradio_client.handle_file(str(tmp_path / "photo.jpg")), api_name="/segment")
            kept = [path for path in places[2].rglob("*") if path.is_file()]
            assert {path.relative_to(places[2]).parts[0].split("-")[0] for path in kept} == {"eomt"}
            assert {"photo.jpg", "photo.overlay.jpg", "photo.json", "photo.png"} <= {path.name for path in kept}
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
    assert [path for place in places for path in place.rglob("*") if path.is_file()] == []
