"""Exported models: the outputs and segments of the model, every engine and precision, errors."""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, pipeline

from eomt import EoMTImageProcessor
from eomt.cli import main
from eomt.engines import ENGINES, open_engine
from eomt.export import synthetic_image
from eomt.inference import ExportedEoMT
from eomt.training.data import make_shapes
from tests.eomt.test_export import export
from tests.models import load_unmasked, save_confident
from tests.pairs import ENVIRONMENT


@pytest.mark.parametrize("engine", ENGINES)
def test_exported_models_have_the_models_outputs(exported, engine):
    model = ExportedEoMT.from_pretrained(exported / "out", engine=engine)
    assert (model.engine.name, model.engine.precision, model.engine.size) == (engine, "fp32", (64, 64))
    for batch in (1, 3):
        pixels = torch.randn(batch, 3, 64, 64)
        with torch.no_grad():
            expected = load_unmasked(exported / "model")(pixels)
            found = model(pixels, patch_offsets=[(0, 0, 64)] * batch)
        assert type(found) is type(expected)
        assert found.patch_offsets == [(0, 0, 64)] * batch
        for name in ("class_queries_logits", "masks_queries_logits"):
            torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("engine", ENGINES)
def test_calls_from_threads_have_the_same_results(exported, engine):
    """From more threads than the engine has requests."""
    model = ExportedEoMT.from_pretrained(exported / "out", engine=engine, num_requests=None)
    assert model.num_requests >= 1
    images = torch.randn(12, 1, 3, 64, 64)
    with ThreadPoolExecutor(model.num_requests + 2) as pool:
        together = list(pool.map(model, images))
    for pixels, found in zip(images, together):
        torch.testing.assert_close(found.masks_queries_logits, model(pixels).masks_queries_logits)


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_the_pipeline_has_the_same_segments(exported, task, tmp_path):
    """The task is that of config.json, not of the exported files."""
    for name in ("model", "out"):
        shutil.copytree(exported / name, tmp_path / name)
        config = json.loads((exported / name / "config.json").read_text())
        (tmp_path / name / "config.json").write_text(json.dumps(config | {"task": task}))
        EoMTImageProcessor(task=task, size=64).save_pretrained(tmp_path / name)
    photos = [synthetic_image(50, 80), synthetic_image(90, 60), synthetic_image(40, 130)]
    results = []
    for model in (load_unmasked(tmp_path / "model"), ExportedEoMT.from_pretrained(tmp_path / "out")):
        processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
        segment = pipeline("image-segmentation", model=model, image_processor=processor)
        results += [[segment(photo, threshold=0.3) for photo in photos], segment(photos, batch_size=3, threshold=0.3)]
    first, *others = results
    assert sum(map(len, first)) > 0
    for other in others:
        for found, expected in zip(other, first, strict=True):
            assert [segment["label"] for segment in found] == [segment["label"] for segment in expected]
            for segment, wanted in zip(found, expected):
                assert (np.asarray(segment["mask"]) != np.asarray(wanted["mask"])).mean() < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("format", "precision"), [("openvino", "int8"), ("openvino", "bf16"), ("onnx", "fp16"), ("onnx", "int8")]
)
def test_lower_precisions_have_similar_logits(exported, format, precision, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(3):
        synthetic_image(60 + index, 80).save(photos / f"{index}.png")
    calibrate = ["--calibrate", photos] if precision == "int8" else []
    options = ("--format", format, "--precision", precision, *calibrate)
    assert export(exported / "model", tmp_path / "out", *options) == 0
    model = ExportedEoMT.from_pretrained(tmp_path / "out")
    assert model.engine.precision == precision
    pixels = EoMTImageProcessor(task="panoptic", size=64)(synthetic_image(), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected, found = load_unmasked(exported / "model")(pixels), model(pixels)
    gap = (expected.masks_queries_logits - found.masks_queries_logits).abs().max()
    assert 0 < gap < 0.2 * expected.masks_queries_logits.abs().max()


@pytest.mark.slow
def test_models_with_rotary_positions_accept_any_size(tmp_path, capsys):
    save_confident(tmp_path / "v3", "dinov3", num_hidden_layers=1)  # with --dynamic-size a layer takes ten seconds
    assert export(tmp_path / "v3", tmp_path / "out", "--format", "openvino", "--dynamic-size") == 0
    pixels = torch.randn(2, 3, 96, 32)
    with torch.no_grad():
        expected = load_unmasked(tmp_path / "v3")(pixels).masks_queries_logits
    found = ExportedEoMT.from_pretrained(tmp_path / "out")(pixels).masks_queries_logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    for height, width in ((96, 40), (16, 32), (32, 4112)):
        with pytest.raises(ValueError, match=f"{height} × {width}"):
            ExportedEoMT.from_pretrained(tmp_path / "out")(torch.zeros(1, 3, height, width))
    save_confident(tmp_path / "v2")
    capsys.readouterr()
    assert export(tmp_path / "v2", tmp_path / "none", "--format", "openvino", "--dynamic-size") == 2
    assert "positions" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_engines_compute_in_bfloat16_on_request_only(exported):
    """OpenVINO would compute in bf16 on CPUs with bf16 if no precision were set."""
    model, pixels = load_unmasked(exported / "model"), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(pixels).masks_queries_logits
    half = ExportedEoMT.from_pretrained(exported / "out", engine="openvino", dtype=torch.bfloat16)
    capable = "BF16" in import_module("openvino").Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    assert half.engine.dtype == ("bf16" if capable else "fp32")  # the type of the computation
    torch.testing.assert_close(half(pixels).masks_queries_logits, expected, rtol=0.1, atol=0.5)


def test_commands_refuse_impossible_options_of_an_engine(exported, tmp_path, capsys):
    synthetic_image(50, 80).save(tmp_path / "a.png")
    run = ["predict", str(tmp_path / "a.png"), "--output", str(tmp_path / "out"), "--model", str(exported / "out")]
    assert main([*run, "--compile"]) == 2
    assert "--compile" in capsys.readouterr().err
    assert export(exported / "out", tmp_path / "again") == 2
    assert str(exported / "out") in capsys.readouterr().err


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_commands_accept_an_exported_folder(exported, command, tmp_path):
    if command == "predict":
        synthetic_image(50, 80).save(tmp_path / "a.png")
        run = ["predict", tmp_path / "a.png", "--model"]
    else:
        make_shapes(tmp_path / "data", train=1, val=3)
        run = ["evaluate"]
    results = []
    for model in ("model", "out"):
        output = tmp_path / model
        place = [exported / model] if command == "predict" else [exported / model, "--data", tmp_path / "data"]
        masks = ["--no-masked"] if model == "model" else []  # masked_inference is in its configuration
        assert main([*map(str, [*run, *place, *masks, "--output", output, "--device", "cpu"])]) == 0
        file = output / ("panoptic.json" if command == "predict" else "metrics.json")
        results.append(json.loads(file.read_text()))
    if command == "evaluate":
        assert results[0]["metrics"]["pq"] == results[1]["metrics"]["pq"]
    else:
        assert results[0]["annotations"] == results[1]["annotations"]


@pytest.mark.slow
def test_signals_work_after_models_are_deleted(exported):
    """OpenVINO would leave the stack of signal handlers in freed memory. Models are deleted in the order of loading."""
    script = """if True:
        import os, signal, sys
        from eomt.inference import ExportedEoMT
        models = [ExportedEoMT.from_pretrained(sys.argv[1], engine="openvino") for _ in range(2)]
        while models:
            del models[0]
        signal.signal(signal.SIGUSR1, lambda *_: None)
        memory = [bytearray(1 << 20) for _ in range(200)]
        os.kill(os.getpid(), signal.SIGUSR1)
    """
    done = subprocess.run([sys.executable, "-c", script, str(exported / "out")], env=os.environ | ENVIRONMENT)
    assert done.returncode == 0


def test_impossible_calls_of_an_exported_model_are_refused(exported):
    model = ExportedEoMT.from_pretrained(exported / "out", engine="onnx")
    for call, word in (
        (lambda: model(torch.zeros(1, 3, 32, 64)), "32 × 64"),
        (lambda: model(torch.zeros(1, 3, 64, 64), mask_labels=[], class_labels=[]), "loss"),
        (lambda: model.set_token_merging(threshold=0.9), "tokens"),
        (lambda: model.set_attn_mask_probs([1.0]), "masked"),
        (lambda: open_engine(exported / "out", "tensorrt"), "'tensorrt'"),
        (lambda: open_engine(exported / "out", "onnx", "bf16"), "'bf16'"),
    ):
        with pytest.raises(ValueError, match=word):
            call()


def test_folders_without_an_exported_model_are_refused(exported, tmp_path, monkeypatch):
    def refused(word, **options):
        with pytest.raises(ValueError, match=word):
            ExportedEoMT.from_pretrained(tmp_path, **options)

    refused(r"config\.json")
    shutil.copy(exported / "out/config.json", tmp_path)
    refused(str(tmp_path))
    for name, engine in ENGINES.items():
        (tmp_path / engine.file).write_bytes(b"<net name='cut")
        refused(engine.file, engine=name)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused("openvino", engine="openvino")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    refused("'vit'")
