"""The scripts around the ladder and token merging: a run of each kind, and the page they write."""

import json

import numpy as np
import pytest
from PIL import Image
from transformers import AutoModelForUniversalSegmentation

from benchmarks import ladder_in_small, token_merging
from eomt.training.data import make_shapes
from tests.models import tiny_model


def run_of(folder, step, start, seed, value, **changes):
    settings = {"data": "streets", "task": "semantic", "backbone": "S", "image_size": 224, "steps": 60, "batch": 4}
    found = {"step": step, "start": start, "seed": seed, "value": value, "parameters": 1e6 * (30 - step), "gflops": 8.0}
    folder = folder / f"{step}-{start}-{seed}"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(settings | found | changes))


def test_the_page_averages_seeds_and_refuses_unlike_runs(tmp_path):
    for seed, value in ((0, 0.4), (1, 0.5)):
        run_of(tmp_path, 0, "pretrained", seed, value)
    run_of(tmp_path, 5, "pretrained", 0, 0.40)
    run_of(tmp_path, 5, "random", 0, 0.12)
    page = ladder_in_small.table(tmp_path).splitlines()
    assert page[0].startswith("S on streets (semantic): 60 steps of 4 images of 224 px, seeds 0, 1.")
    assert page[4] == "| (0) | ViT-Adapter + Mask2Former | 45.0 | – | 30.0M | 8.00 |"
    assert page[5] == "| (5) | w/o masking at inference (EoMT) | 40.0 | 12.0 | 25.0M | 8.00 |"
    run_of(tmp_path, 3, "random", 0, 0.1, steps=90)
    with pytest.raises(ValueError, match="runs of different settings"):
        ladder_in_small.table(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"there is no run\.json"):
        ladder_in_small.table(tmp_path / "empty")


# a real ViT-S, as the script takes backbones by name: several seconds
def test_runs_are_trained_timed_and_not_repeated(tmp_path, capsys, monkeypatch):
    shapes = make_shapes(tmp_path / "shapes", train=2, val=1, size=(32, 32))
    options = ["--output", str(tmp_path / "runs"), "--data", str(shapes), "--task", "panoptic", "--starts", "random"]
    options += ["--image-size", "32", "--steps", "1", "--batch", "1", "--points", "16", "--only", "3"]
    ladder_in_small.main(options)
    (file,) = (tmp_path / "runs").rglob("run.json")
    run = json.loads(file.read_text())
    model = AutoModelForUniversalSegmentation.from_pretrained(file.parent)
    assert run["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert model.config.step == 3
    assert model.attn_mask_probs.all()  # masked at inference, as the paper's steps 0 to 4
    monkeypatch.setattr(ladder_in_small, "eomt", lambda argv: pytest.fail("trained again"))
    ladder_in_small.main(options)
    capsys.readouterr()
    page = tmp_path / "page.md"
    ladder_in_small.main(["--output", str(tmp_path / "runs"), "--latency", "--table", str(page)])
    assert " ms |" in page.read_text()
    with pytest.raises(SystemExit):
        ladder_in_small.main(["--output", str(tmp_path / "runs")])


def test_latency_of_merging(tmp_path, capsys):
    tiny_model(image_size=96).save_pretrained(tmp_path / "model")
    Image.fromarray(np.zeros((60, 90, 3), np.uint8)).save(tmp_path / "plain.png")
    options = ["--thresholds", "0.5", "--layers", "1", "2", "--repeats", "1"]
    token_merging.main([str(tmp_path / "model"), str(tmp_path / "plain.png"), *options])
    _, off, merged = capsys.readouterr().out.splitlines()
    assert off.split()[:2] == ["off", "100%"]
    assert int(merged.split()[1].rstrip("%")) < 100
