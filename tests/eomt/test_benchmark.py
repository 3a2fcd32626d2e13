"""`eomt benchmark`: EoMT, Mask2Former, the ladder and exported models."""

import json
import shutil
import time

import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForUniversalSegmentation,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    SwinConfig,
)

from eomt.cli import main
from eomt.engines import OpenVINOEngine
from eomt.speed.candidates import Candidate
from eomt.speed.measure import measure_seconds, peak_bytes
from tests.modeling_eomt.ladder.test_ladder import ladder
from tests.models import tiny_model

CPU = torch.device("cpu")
QUICK = ("--warm-up", "0", "--repeats", "2", "--device", "cpu")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    model = tiny_model()
    model.set_attn_mask_probs([0.0, 0.0])
    model.save_pretrained(folder / "eomt")
    swin = SwinConfig(
        embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    size = {"hidden_dim": 32, "num_attention_heads": 2, "num_queries": 5, "num_labels": 3, "dim_feedforward": 16}
    mask2former = Mask2FormerConfig(
        backbone_config=swin, feature_size=32, mask_feature_size=32, encoder_layers=1, decoder_layers=2,
        encoder_feedforward_dim=16, **size,
    )  # fmt: skip
    Mask2FormerForUniversalSegmentation(mask2former).save_pretrained(folder / "mask2former")
    return folder


def benchmark(*arguments) -> int:
    return main(["benchmark", "--model", *map(str, arguments)])


def test_two_models_are_compared(models, tmp_path, capsys):
    names = [models / name for name in ("eomt", "mask2former")]
    options = ("--image-size", "64", "--batch-size", "2", "--json", tmp_path / "out.json", *QUICK)
    assert benchmark(*names, *options) == 0
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in table[2:]] == ["eomt", "mask2former"]
    assert "images/s at 2" in table[0]
    results = json.loads((tmp_path / "out.json").read_text())
    assert results["setting"]["dtype"] == "float32"
    for row, name in zip(results["rows"], names):
        model = AutoModelForUniversalSegmentation.from_pretrained(name)
        assert row["parameters"] == sum(parameter.numel() for parameter in model.parameters())
        assert row["gflops"] > 0
        assert 0 < row["latency_ms"]["p10"] <= row["latency_ms"]["median"] <= row["latency_ms"]["p90"]
        assert row["images_per_second"] == pytest.approx(1000 / row["latency_ms"]["median"])
        assert row["peak_memory_bytes"] > 4 * row["parameters"]


def test_the_label_has_the_engine_in_use(exported, monkeypatch):
    assert Candidate.find(str(exported / "out")).label.endswith(" openvino")
    monkeypatch.setattr(OpenVINOEngine, "package", "no_such_package")
    assert Candidate.find(str(exported / "out")).label.endswith(" onnx")


def test_exported_folders_are_measured_on_their_engine(exported, tmp_path, capsys):
    folder, file = tmp_path / "exported", tmp_path / "out.json"
    shutil.copytree(exported / "out", folder, ignore=shutil.ignore_patterns("openvino*"))
    assert benchmark(exported / "model", folder, "--json", file, "--dtype", "bfloat16", "--no-masked", *QUICK) == 0
    model, row = json.loads(file.read_text())["rows"]
    assert (row["engine"], row["precision"], row["computes_in"]) == ("onnx", "fp32", "fp32")
    assert (row["parameters"], row["gflops"]) == (model["parameters"], model["gflops"])
    assert row["latency_ms"]["median"] > 0
    assert row["peak_memory_bytes"] is None
    assert "exported 64×64 onnx" in capsys.readouterr().out
    Image.new("RGB", (40, 30)).save(tmp_path / "photo.png")
    assert benchmark(folder, "--images", tmp_path / "photo.png", "--json", file, *QUICK) == 0
    assert json.loads(file.read_text())["rows"][0]["gflops"] == model["gflops"]
    assert benchmark(folder, "--image-size", "32", *QUICK) == 2
    assert "64 × 64" in capsys.readouterr().err
    assert benchmark(folder, "--masked", *QUICK) == 2
    assert "--masked" in capsys.readouterr().err


def test_masked_inference_has_more_gflops(tmp_path):
    tiny_model().save_pretrained(tmp_path / "eomt")  # with masked_inference in its configuration
    rows = {}
    for options in ([], ["--masked"], ["--no-masked"]):
        file = tmp_path / "out.json"
        assert benchmark(tmp_path / "eomt", *options, "--json", file, *QUICK) == 0
        (rows[" ".join(options)],) = json.loads(file.read_text())["rows"]
    assert [row["masked"] for row in rows.values()] == [True, True, False]
    assert rows["--masked"]["label"] == "eomt 64×64 masked"
    assert rows["--masked"]["gflops"] > rows["--no-masked"]["gflops"]


def test_several_sizes_in_mixed_precision(models, tmp_path):
    file = tmp_path / "out.json"
    sizes = ("--image-size", "64", "32x96", "--dtype", "bfloat16", "--autocast")
    assert benchmark(models / "eomt", *sizes, "--json", file, *QUICK) == 0
    assert [row["image_size"] for row in json.loads(file.read_text())["rows"]] == [[64, 64], [32, 96]]


@pytest.mark.parametrize(("name", "size", "options", "value"), [
    ("vit_large_patch14_reg4_dinov2", 640, {"task": "panoptic"}, 56.0),
    ("vit_large_patch14_reg4_dinov2", 1280, {"task": "instance"}, 48.8),
    ("vit_small_patch16_dinov3", 640, {"task": "panoptic"}, 47.2),
    ("vit_large_patch14_reg4_dinov2", 640, {"masked": True}, None),
])  # fmt: skip
def test_quality_is_that_of_the_paper(name, size, options, value):
    reported = Candidate.find(name, size, **options).reported()
    assert (reported and reported.value) == value


def test_a_model_that_cannot_run_does_not_stop_the_others(models, tmp_path, capsys, monkeypatch):
    load = Candidate.load

    def too_large(self, *args):
        if "mask2former" in self.name:
            raise RuntimeError("CUDA out of memory\nmore lines")
        return load(self, *args)

    monkeypatch.setattr(Candidate, "load", too_large)
    options = ("--image-size", "64", "--json", tmp_path / "out.json", *QUICK)
    assert benchmark(models / "mask2former", models / "eomt", *options) == 1
    first, second = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert first["error"] == "CUDA out of memory"
    assert second["images_per_second"] > 0
    assert "mask2former 64×64: CUDA out of memory" in capsys.readouterr().err


def test_times_exclude_the_warm_up():
    durations = iter([0.05, 0.05, 0.001, 0.002, 0.003])
    found = measure_seconds(lambda: time.sleep(next(durations)), CPU, warm_up=2, repeats=3)
    assert 0.002 <= found["median"] < 0.02
    assert found["p10"] <= found["median"] <= found["p90"]


def test_peak_memory_is_that_of_weights_and_live_tensors():
    layer = torch.nn.Linear(4, 4, bias=False)  # 64 bytes

    def run():
        a = torch.empty(1_000_000)  # 4 MB
        del a
        b = torch.empty(500_000)
        c = torch.empty(1_000_000)  # with b: 6 MB
        return b, c

    assert peak_bytes(run, layer, CPU) == pytest.approx(6_000_064, rel=0.01)


def test_counts_of_ladder_steps_equal_the_papers(tmp_path):
    """ViT-S of Table 3."""
    file = tmp_path / "out.json"
    steps = ("--step", 0, 5, "--count-only", "--json", file)
    assert benchmark("vit_small_patch14_reg4_dinov2", *steps) == 0
    rows = json.loads(file.read_text())["rows"]
    assert [round(row["gflops"]) for row in rows] == [165, 68]
    assert [round(row["parameters"] / 1e6) for row in rows] == [47, 24]
    assert [row["label"].split(" ", 1)[1] for row in rows] == ["step 0 640×640", "640×640"]


def test_a_saved_ladder_step_is_measured(tmp_path, capsys):
    ladder(2).save_pretrained(tmp_path / "step2")
    assert benchmark(tmp_path / "step2", "--json", tmp_path / "out.json", *QUICK) == 0
    (row,) = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert row["masked"]
    assert row["parameters"] == sum(parameter.numel() for parameter in ladder(2).parameters())
    assert benchmark(tmp_path / "step2", "--step", "3") == 2
    assert "step" in capsys.readouterr().err
