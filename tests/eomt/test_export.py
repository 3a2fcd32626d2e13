"""`eomt export`: files with the logits of the model."""

import json
import shutil

import pytest
import torch
from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation

from eomt import EoMTImageProcessor
from eomt.cli import main
from eomt.engines import ONNXEngine
from eomt.export import WRITERS, exportable
from eomt.inference import ExportedEoMT
from eomt.training.data import make_shapes
from eomt.training.evaluation import evaluate_model
from tests.modeling_eomt.ladder.test_ladder import ladder
from tests.modeling_eomt.test_pmt import tiny_pmt
from tests.models import load_unmasked, save_confident, tiny_model


def export(*arguments) -> int:
    return main(["export", *map(str, arguments)])


def test_an_export_has_the_files_and_settings_of_the_model(exported):
    names = {path.name for path in (exported / "out").iterdir() if not path.name.startswith("openvino")}
    assert names == {"model.onnx", "config.json", "preprocessor_config.json"}
    config = json.loads((exported / "out/config.json").read_text())
    assert config["id2label"]["4"] == "LABEL_4"
    processor = AutoImageProcessor.from_pretrained(exported / "out")
    assert processor.to_dict() == AutoImageProcessor.from_pretrained(exported / "model").to_dict()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["eva02", "deit3", "dinov2_swiglu"])  # others: in further tests and in `exported`
def test_every_family_is_exported(kind, tmp_path, capsys):
    """The command itself compares the logits."""
    save_confident(tmp_path / "model", kind)
    assert export(tmp_path / "model", tmp_path / "out", "--format", "onnx") == 0
    assert capsys.readouterr().out.count("logits differ") == 1


@pytest.mark.parametrize("make", [tiny_model, tiny_pmt])
@torch.no_grad()
def test_torch_export_of_an_exportable_model(make):
    model, pixels = make(), torch.randn(1, 3, 64, 64)
    program = torch.export.export(exportable(model), (torch.zeros(1, 3, 64, 64),))
    torch.testing.assert_close(program.module()(pixels)[1], model(pixels).masks_queries_logits, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_an_exported_ladder_step_accepts_any_batch(tmp_path):
    ladder(3).save_pretrained(tmp_path / "model")
    EoMTImageProcessor(task="panoptic", size=64).save_pretrained(tmp_path / "model")
    assert export(tmp_path / "model", tmp_path / "out", "--format", "onnx") == 0
    model = AutoModelForUniversalSegmentation.from_pretrained(tmp_path / "model").eval()
    pixels = torch.randn(3, 3, 64, 64)
    model.set_attn_mask_probs([0.0] * model.config.num_blocks)
    found = ExportedEoMT.from_pretrained(tmp_path / "out")(pixels).masks_queries_logits
    torch.testing.assert_close(found, model(pixels).masks_queries_logits, rtol=1e-5, atol=1e-4)


@torch.no_grad()
def test_a_semantic_model_is_exported_at_another_size_without_masks(tmp_path, capsys):
    """Windows of a semantic model are the batch of the comparison."""
    save_confident(tmp_path / "model", "dinov3", task="semantic", masking=0.5)
    assert export(tmp_path / "model", tmp_path / "out", "--format", "onnx", "--image-size", "32", "48") == 0
    pixels = torch.randn(3, 3, 32, 48)
    assert "note: " in capsys.readouterr().out
    model = load_unmasked(tmp_path / "model", image_size=(32, 48))
    found = ExportedEoMT.from_pretrained(tmp_path / "out")(pixels).masks_queries_logits
    torch.testing.assert_close(found, model(pixels).masks_queries_logits, rtol=1e-5, atol=1e-4)
    assert tuple(json.loads((tmp_path / "out/config.json").read_text())["image_size"]) == (32, 48)


@pytest.fixture
def exported_before(exported, monkeypatch):
    """A model of which `eomt export` copies an existing file."""
    file = exported / "out" / ONNXEngine.file
    monkeypatch.setitem(WRITERS, "onnx", lambda model, example, path, *options: shutil.copy(file, path))
    return exported / "model"


def test_a_file_with_other_logits_is_deleted(exported_before, tmp_path, monkeypatch, capsys):
    correct = ONNXEngine.run
    monkeypatch.setattr(ONNXEngine, "run", lambda *args: tuple(t + 0.1 for t in correct(*args)))
    assert export(exported_before, tmp_path / "out", "--format", "onnx") == 2
    assert "0.1" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("after", "code"), [(38.5, 2), (39.5, 0)])
def test_a_file_with_a_lower_score_is_deleted(after, code, exported_before, tmp_path, monkeypatch, capsys):
    """The scores of model and file are evaluated, and then replaced, because those of a tiny model are near 0."""
    data = make_shapes(tmp_path / "shapes", train=1, val=2)
    scores, evaluated = iter((0.4, after / 100)), []

    def evaluate(model, *arguments, **options):
        evaluated.append(evaluate_model(model, *arguments, **options)["pq"])
        return {"pq": next(scores)}

    monkeypatch.setattr("eomt.export.evaluate_model", evaluate)
    options = ("--format", "onnx", "--data", data, "--max-drop", "1")
    assert export(exported_before, tmp_path / "out", *options) == code
    assert evaluated[0] == pytest.approx(evaluated[1], abs=1e-6)
    printed = capsys.readouterr()
    assert f"{after:.2f}" in printed.out
    assert ("1.50" in printed.err) == bool(code)
    assert (tmp_path / "out").exists() == (not code)
