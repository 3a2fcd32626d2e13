"""`eomt export` as a user calls it: files that equal the model."""

import json

import pytest
import torch
from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation

from eomt import EoMTImageProcessor
from eomt.cli import main
from eomt.engines import ONNXEngine
from eomt.export import exportable
from eomt.inference import ExportedEoMT
from tests.modeling_eomt.ladder.test_ladder import ladder
from tests.models import load_unmasked, save_confident, tiny_model

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def export(*arguments) -> int:
    return main(["export", *map(str, arguments)])


def test_files_and_settings(exported):
    names = {path.name for path in (exported / "out").iterdir() if not path.name.startswith("openvino")}
    assert names == {"model.onnx", "config.json", "preprocessor_config.json"}
    config = json.loads((exported / "out/config.json").read_text())
    assert config["id2label"]["4"] == "LABEL_4"
    processor = AutoImageProcessor.from_pretrained(exported / "out")
    assert processor.to_dict() == AutoImageProcessor.from_pretrained(exported / "model").to_dict()


@pytest.mark.parametrize("kind", [
    "dinov3",
    pytest.param("eva02", marks=pytest.mark.slow),
    pytest.param("deit3", marks=pytest.mark.slow),
    pytest.param("dinov2_swiglu", marks=pytest.mark.slow),
])  # fmt: skip
def test_every_family(kind, tmp_path, capsys):
    """The command compares; here it must only succeed, and say by how much they differ."""
    save_confident(tmp_path / "model", kind)
    assert export(tmp_path / "model", tmp_path / "out", "--format", "onnx") == 0
    said = capsys.readouterr().out
    assert said.count("on a synthetic image logits differ by at most") == 1
    assert "done:" in said


@torch.no_grad()
def test_the_two_lines_of_torch_export():
    model, pixels = tiny_model(), torch.randn(1, 3, 64, 64)
    program = torch.export.export(exportable(model), (torch.zeros(1, 3, 64, 64),))
    torch.testing.assert_close(program.module()(pixels)[1], model(pixels).masks_queries_logits, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_a_step_of_the_ladder_takes_any_batch(tmp_path):
    ladder(3).save_pretrained(tmp_path / "model")
    EoMTImageProcessor(task="panoptic", size=64).save_pretrained(tmp_path / "model")
    assert export(tmp_path / "model", tmp_path / "out", "--format", "onnx") == 0
    model = AutoModelForUniversalSegmentation.from_pretrained(tmp_path / "model").eval()
    pixels = torch.randn(3, 3, 64, 64)
    model.set_attn_mask_probs([0.0] * model.config.num_blocks)
    found = ExportedEoMT.from_pretrained(tmp_path / "out")(pixels).masks_queries_logits
    torch.testing.assert_close(found, model(pixels).masks_queries_logits, rtol=1e-5, atol=1e-4)


@torch.no_grad()
def test_another_size_windows_and_masks(tmp_path, capsys):
    """A semantic model cuts the image into several inputs: they are the batch of the check. Masks are turned off."""
    save_confident(tmp_path / "model", task="semantic", masking=0.5)
    assert export(tmp_path / "model", tmp_path / "out", "--format", "onnx", "--image-size", "32", "48") == 0
    pixels = torch.randn(3, 3, 32, 48)
    assert "note: " in capsys.readouterr().out
    model = load_unmasked(tmp_path / "model", image_size=(32, 48))
    found = ExportedEoMT.from_pretrained(tmp_path / "out")(pixels).masks_queries_logits
    torch.testing.assert_close(found, model(pixels).masks_queries_logits, rtol=1e-5, atol=1e-4)
    assert tuple(json.loads((tmp_path / "out/config.json").read_text())["image_size"]) == (32, 48)


def test_a_file_that_differs_is_not_left(tmp_path, monkeypatch, capsys):
    save_confident(tmp_path / "model")
    correct = ONNXEngine.run
    monkeypatch.setattr(ONNXEngine, "run", lambda *args: tuple(t + 0.1 for t in correct(*args)))
    assert export(tmp_path / "model", tmp_path / "out", "--format", "onnx") == 2
    assert "model.onnx differs from the model by 0.1 in a logit" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
