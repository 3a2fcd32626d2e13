"""`eomt export` as a user calls it: files that equal the model, and the runner of docs/onnx.md."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation

from eomt import EoMTImageProcessor
from eomt.cli import main
from eomt.inference.engines import TorchExportEngine
from eomt.inference.exporting import synthetic_photo
from tests.models import tiny_model

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
DOCS = Path(__file__).parents[2] / "docs" / "onnx.md"
ALLOWED = {"json", "sys", "numpy", "onnxruntime", "PIL"}


def saved(folder, kind="dinov2", task="panoptic", masking=0.0, **overrides):
    model = tiny_model(kind, seed=1, task=task, **overrides)
    with torch.no_grad():  # sure of its classes
        model.class_predictor.weight.mul_(40)
        model.mask_head[-1].weight.mul_(6)
    model.set_attn_mask_probs([masking] * 2)
    model.save_pretrained(folder)
    EoMTImageProcessor(task=task, size=64).save_pretrained(folder)
    return folder


def export(*arguments) -> int:
    return main(["export", *map(str, arguments)])


def unmasked(folder):
    model = AutoModelForUniversalSegmentation.from_pretrained(folder).eval()
    model.set_attn_mask_probs([0.0] * 2)
    return model


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model with masking on, and its export."""
    folder = tmp_path_factory.mktemp("export")
    photo = folder / "photo.png"
    synthetic_photo(60, 90).save(photo)
    saved(folder / "model", masking=1.0, num_queries=12)
    assert export(folder / "model", folder / "out", "--image", photo) == 0
    return folder


def test_files_and_settings(exported):
    names = {path.name for path in (exported / "out").iterdir()}
    assert names == {"model.onnx", "model.pt2", "config.json", "preprocessor_config.json"}
    config = json.loads((exported / "out/config.json").read_text())
    assert config["id2label"]["4"] == "LABEL_4"
    processor = AutoImageProcessor.from_pretrained(exported / "out")
    assert processor.to_dict() == AutoImageProcessor.from_pretrained(exported / "model").to_dict()


@pytest.mark.parametrize("batch", [1, 2, 5])
@torch.no_grad()
def test_both_files_equal_the_unmasked_model(exported, batch):
    pixels = torch.randn(batch, 3, 64, 64)
    output = unmasked(exported / "model")(pixels)
    expected = (output.class_queries_logits, output.masks_queries_logits)
    session = onnxruntime.InferenceSession(exported / "out/model.onnx", providers=["CPUExecutionProvider"])
    from_onnx = session.run(["class_queries_logits", "masks_queries_logits"], {"pixel_values": pixels.numpy()})
    from_pt2 = torch.export.load(exported / "out/model.pt2").module()(pixels)
    for ours, onnx, pt2 in zip(expected, from_onnx, from_pt2):
        torch.testing.assert_close(torch.from_numpy(onnx), ours, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(pt2, ours, rtol=1e-5, atol=1e-4)


def test_a_program_runs_without_this_package(exported):
    script = (
        "import sys, torch; program = torch.export.load(sys.argv[1]).module(); "
        "print(*(tuple(t.shape) for t in program(torch.zeros(3, 3, 64, 64)))); "
        "assert not any(name.split('.')[0] in ('eomt', 'transformers') for name in sys.modules)"
    )
    command = [sys.executable, "-I", "-c", script, str(exported / "out/model.pt2")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == "(3, 12, 6) (3, 12, 16, 16)"


def test_the_documents_runner(exported, tmp_path):
    """The text's own lines, with the three packages it names: segments equal those computed from the model here."""
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    tree = ast.parse(code)
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names] if isinstance(node, ast.Import)
            else [node.module] if isinstance(node, ast.ImportFrom) else []
        )
    }  # fmt: skip
    assert imported == ALLOWED
    body = code.split("\n\n")[2]  # after the imports, before the output
    assert len(body.strip().splitlines()) == 10  # as the text says
    (tmp_path / "run.py").write_text(code, encoding="utf-8")
    command = [sys.executable, "-I", "run.py", str(exported / "out"), str(exported / "photo.png"), "segments.png"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    processor = AutoImageProcessor.from_pretrained(exported / "model")
    photo = Image.open(exported / "photo.png")
    with torch.no_grad():
        output = unmasked(exported / "model")(**processor(photo, return_tensors="pt"))
    scores, labels = output.class_queries_logits[0].softmax(-1).max(-1)
    kept = [q for q in range(12) if labels[q] < 5 and scores[q] > 0.8]
    assert len(kept) > 1
    said = [line.split() for line in done.stdout.splitlines()]
    assert said == [[str(i), f"LABEL_{labels[q]}", f"{scores[q]:.3f}"] for i, q in enumerate(kept, start=1)]
    weighted = scores[kept, None, None] * output.masks_queries_logits[0, kept].sigmoid()
    owner = (weighted.argmax(0) + 1).repeat_interleave(4, 0).repeat_interleave(4, 1)[:43, :64]  # 60 × 90 → 43 × 64
    expected = Image.fromarray(owner.numpy().astype(np.uint8)).resize((90, 60), Image.Resampling.NEAREST)
    found = np.asarray(Image.open(tmp_path / "segments.png"))
    assert found.shape == (60, 90)
    assert len(np.unique(found)) > 1
    assert (found != np.asarray(expected)).mean() < 0.01


@pytest.mark.parametrize(("kind", "formats"), [
    ("dinov2_swiglu", ["pt2"]), ("deit3", ["pt2"]), ("dinov3", ["pt2", "onnx"]), ("eva02", ["pt2", "onnx"])
])  # fmt: skip
def test_every_family(kind, formats, tmp_path, capsys):
    """The command compares; here it must only succeed, and say by how much they differ."""
    saved(tmp_path / "model", kind)
    assert export(tmp_path / "model", tmp_path / "out", "--format", *formats) == 0
    said = capsys.readouterr().out
    assert said.count("on a synthetic image logits differ by at most") == len(formats)
    assert "done:" in said


def test_masking_that_is_turned_off_is_said(tmp_path, capsys):
    saved(tmp_path / "model", masking=0.5)
    assert export(tmp_path / "model", tmp_path / "out", "--format", "pt2") == 0
    assert "masked attention was on [0.5, 0.5]; it is exported off" in capsys.readouterr().out
    assert not (tmp_path / "out/model.onnx").exists()


@torch.no_grad()
def test_another_size_and_windows(tmp_path):
    """A semantic model cuts the photo into several inputs: they are the batch of the check."""
    saved(tmp_path / "model", task="semantic")
    synthetic_photo(40, 150).save(tmp_path / "photo.png")
    options = ("--format", "pt2", "--image-size", "32", "48", "--image", tmp_path / "photo.png")
    assert export(tmp_path / "model", tmp_path / "out", *options) == 0
    pixels = torch.randn(3, 3, 32, 48)
    model = AutoModelForUniversalSegmentation.from_pretrained(tmp_path / "model", image_size=(32, 48)).eval()
    found = torch.export.load(tmp_path / "out/model.pt2").module()(pixels)[1]
    torch.testing.assert_close(found, model(pixels).masks_queries_logits, rtol=1e-5, atol=1e-4)
    assert tuple(json.loads((tmp_path / "out/config.json").read_text())["image_size"]) == (32, 48)


def test_a_file_that_differs_is_not_left(tmp_path, monkeypatch, capsys):
    saved(tmp_path / "model")
    correct = TorchExportEngine.run
    monkeypatch.setattr(TorchExportEngine, "run", lambda *args: tuple(t + 0.1 for t in correct(*args)))
    assert export(tmp_path / "model", tmp_path / "out", "--format", "pt2") == 2
    assert "model.pt2 differs from the model by 0.1 in a logit" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_refuses_to_overwrite(tmp_path, capsys):
    saved(tmp_path / "model")
    (tmp_path / "out").mkdir()
    assert export(tmp_path / "model", tmp_path / "out", "--format", "pt2") == 2
    assert "exists" in capsys.readouterr().err
    assert export(tmp_path / "model", tmp_path / "out", "--format", "pt2", "--force") == 0
    assert export(tmp_path / "model", tmp_path / "out", "--format", "pt2", "--image", tmp_path / "none.png") == 2
    assert export(tmp_path / "model", tmp_path / "new", "--format", "pt2", "--image", tmp_path / "none.png") == 2
    assert not (tmp_path / "new").exists()
