"""The code of docs/deployment.md has the library's segments, without this package."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from eomt.export import synthetic_image
from eomt.image_processing import read_image
from tests.models import load_unmasked, turned_png

BLOCKS = re.findall(
    r"```python\n(.*?)```", (Path(__file__).parents[2] / "docs/deployment.md").read_text(encoding="utf-8"), re.DOTALL
)


@pytest.fixture(scope="module", params=["openvino", "onnx"])
def folder(request, exported, tmp_path_factory):
    """A folder with the files of one engine, and a photo."""
    folder = tmp_path_factory.mktemp("deployment")
    (folder / "exported").mkdir()
    for file in exported.glob("out/*"):
        if file.suffix == ".json" or request.param in file.name or file.suffix == f".{request.param}":
            shutil.copy(file, folder / "exported")
    (folder / "photo.png").write_bytes(turned_png(synthetic_image(90, 60)))  # 60 × 90 when upright
    return folder


def run(code: str, folder: Path, *arguments: str) -> str:
    (folder / "run.py").write_text(code, encoding="utf-8")
    done = subprocess.run([sys.executable, "run.py", *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_runner_has_the_librarys_segments(folder, exported):
    code = BLOCKS[1]
    assert not re.search(r"\b(torch|transformers|eomt)\b", code.replace("as torch's", ""))
    printed = run(code, folder, "exported", "photo.png", "segments.png").splitlines()
    processor = AutoImageProcessor.from_pretrained(exported / "model")
    photo = read_image(folder / "photo.png")
    with torch.no_grad():
        outputs = load_unmasked(exported / "model")(**processor(photo, return_tensors="pt"))
    (result,) = processor.post_process_panoptic_segmentation(outputs, target_sizes=[(60, 90)], stuff_classes=[])
    expected = [[str(s["id"] + 1), f"LABEL_{s['label_id']}", f"{s['score']:.3f}"] for s in result["segments_info"]]
    assert len(expected) > 1
    assert [line.split() for line in printed] == expected
    found = np.asarray(Image.open(folder / "segments.png"))
    assert (found != result["segmentation"].numpy() + 1).mean() < 2e-3  # pixels with logits of 0, by rounding


def test_the_pipeline_runs(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    exec(compile(BLOCKS[0], "deployment.md", "exec"), {})
    assert "LABEL_" in capsys.readouterr().out
