"""`eomt export` as a user calls it: files that equal the model."""

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation

from eomt import EoMTImageProcessor
from eomt.cli import main
from eomt.inference.engines import TorchExportEngine
from eomt.inference.exporting import synthetic_photo
from tests.modeling_eomt.ladder.test_ladder import ladder
from tests.models import tiny_model

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


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


@torch.no_grad()
def test_a_step_of_the_ladder_takes_any_batch(tmp_path):
    ladder(3).save_pretrained(tmp_path / "model")
    EoMTImageProcessor(task="panoptic", size=64).save_pretrained(tmp_path / "model")
    assert export(tmp_path / "model", tmp_path / "out", "--format", "pt2") == 0
    model = AutoModelForUniversalSegmentation.from_pretrained(tmp_path / "model").eval()
    pixels = torch.randn(3, 3, 64, 64)
    model.set_attn_mask_probs([0.0] * model.config.num_blocks)
    found = torch.export.load(tmp_path / "out/model.pt2").module()(pixels)[1]
    torch.testing.assert_close(found, model(pixels).masks_queries_logits, rtol=1e-5, atol=1e-4)


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
