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
from tests.models import load_unmasked, save_confident

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def export(*arguments) -> int:
    return main(["export", *map(str, arguments)])


def test_files_and_settings(exported, tmp_path, capsys):
    names = {path.name for path in (exported / "out").iterdir() if not path.name.startswith("openvino")}
    assert names == {"model.onnx", "model.pt2", "config.json", "preprocessor_config.json"}
    config = json.loads((exported / "out/config.json").read_text())
    assert config["id2label"]["4"] == "LABEL_4"
    processor = AutoImageProcessor.from_pretrained(exported / "out")
    assert processor.to_dict() == AutoImageProcessor.from_pretrained(exported / "model").to_dict()
    assert export(exported / "model", tmp_path / "out", "--format", "onnx", "pt2") == 0
    for line in capsys.readouterr().out.splitlines()[-3:-1]:
        name, said = line.split(": ")[0], float(line.split(" MB")[0].split()[-1])
        assert said == pytest.approx((tmp_path / "out" / name).stat().st_size / 1e6, abs=0.06)


@pytest.mark.parametrize("batch", [1, 2, 5])
@torch.no_grad()
def test_both_files_equal_the_unmasked_model(exported, batch):
    pixels = torch.randn(batch, 3, 64, 64)
    output = load_unmasked(exported / "model")(pixels)
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
    assert done.stdout.split("\n")[0] == "(3, 4, 9) (3, 4, 16, 16)"


@pytest.mark.parametrize(("kind", "format"), [
    ("dinov2_swiglu", "pt2"), ("deit3", "pt2"), ("dinov3", "onnx"), ("eva02", "onnx")
])  # fmt: skip
def test_every_family(kind, format, tmp_path, capsys):
    """The command compares; here it must only succeed, and say by how much they differ. ONNX is made from what
    torch.export gives: where it succeeds, so does pt2."""
    save_confident(tmp_path / "model", kind)
    assert export(tmp_path / "model", tmp_path / "out", "--format", format) == 0
    said = capsys.readouterr().out
    assert said.count("on a synthetic image logits differ by at most") == 1
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


@torch.no_grad()
def test_another_size_windows_and_masks(tmp_path, capsys):
    """A semantic model cuts the photo into several inputs: they are the batch of the check. Masks are turned off."""
    save_confident(tmp_path / "model", task="semantic", masking=0.5)
    synthetic_photo(40, 150).save(tmp_path / "photo.png")
    options = ("--format", "pt2", "--image-size", "32", "48", "--image", tmp_path / "photo.png")
    assert export(tmp_path / "model", tmp_path / "out", *options) == 0
    pixels = torch.randn(3, 3, 32, 48)
    assert "masked attention was on [0.5]; it is exported off" in capsys.readouterr().out
    assert not (tmp_path / "out/model.onnx").exists()
    model = load_unmasked(tmp_path / "model", image_size=(32, 48))
    found = torch.export.load(tmp_path / "out/model.pt2").module()(pixels)[1]
    torch.testing.assert_close(found, model(pixels).masks_queries_logits, rtol=1e-5, atol=1e-4)
    assert tuple(json.loads((tmp_path / "out/config.json").read_text())["image_size"]) == (32, 48)


def test_a_file_that_differs_is_not_left(tmp_path, monkeypatch, capsys):
    save_confident(tmp_path / "model")
    correct = TorchExportEngine.run
    monkeypatch.setattr(TorchExportEngine, "run", lambda *args: tuple(t + 0.1 for t in correct(*args)))
    assert export(tmp_path / "model", tmp_path / "out", "--format", "pt2") == 2
    assert "model.pt2 differs from the model by 0.1 in a logit" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_refuses_to_overwrite(tmp_path, capsys):
    save_confident(tmp_path / "model")
    (tmp_path / "out").mkdir()
    assert export(tmp_path / "model", tmp_path / "out", "--format", "pt2") == 2
    assert "exists" in capsys.readouterr().err
    assert export(tmp_path / "model", tmp_path / "out", "--format", "pt2", "--force") == 0
    assert export(tmp_path / "model", tmp_path / "out", "--format", "pt2", "--image", tmp_path / "none.png") == 2
    assert export(tmp_path / "model", tmp_path / "new", "--format", "pt2", "--image", tmp_path / "none.png") == 2
    assert not (tmp_path / "new").exists()
