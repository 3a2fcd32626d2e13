"""The page of results from folders of runs: runs of equal data and length are compared."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from benchmarks import own_data
from eomt.training.data.shapes import make_shapes
from eomt.training.setup import read_data
from eomt.training.start import starting_point


def save_run(folder, variant, seed, value, steps=10):
    folder = folder / f"{variant}-{seed}-{steps}"
    folder.mkdir(parents=True)
    run = {
        "variant": variant, "data": "cells", "task": "instance", "seed": seed, "steps": steps, "batch": 2,
        "image_size": 64, "metric": "ap", "value": value, "metrics": {"ap": value, "ap_50": 2 * value},
        "trained_parameters": 22_000_000, "peak_memory_bytes": 2**30, "seconds_per_step": 13.1,
        "log": [{"loss": "3.0", "step": 5}, {"loss": 2.0, "step": 10}],
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(run))
    noise = np.random.default_rng(0).integers(0, 255, (200, 900, 3), np.uint8)  # JPEG compresses noise worst
    for name in own_data.PICTURES:
        Image.fromarray(noise).save(folder / f"{name}.jpg")


def test_the_page_compares_runs(tmp_path):
    for seed, ours, theirs in ((0, 0.12, 0.05), (1, 0.14, 0.15)):
        save_run(tmp_path / "runs", "ours", seed, ours)
        save_run(tmp_path / "runs", "built-in-1e-4", seed, theirs)
    save_run(tmp_path / "runs", "built-in-example", 0, 0.01)
    save_run(tmp_path / "runs", "never", 0, 0.3, steps=20)
    page = tmp_path / "results.md"
    page.write_text("# Results\n\n<!-- runs -->\nold\n<!-- /runs -->\nend\n", encoding="utf-8")
    own_data.main(["page", str(tmp_path / "runs"), "--page", str(page)])
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# Results\n\n<!-- runs -->\n\n### cells")
    assert text.endswith("\n<!-- /runs -->\nend\n")
    assert text.count("### cells, instance") == 2  # 10 and 20 steps are not compared
    assert "**13.0 (12.0 … 14.0)** | 26.0 (24.0 … 28.0) | 0, 1 | 22.0 M | 1.0 GiB |" in text
    assert "Ours 13.0 (12.0 … 14.0) AP; the built-in at its best rate here 10.0 (5.0 … 15.0)." in text
    assert "ahead in 1 of 2 seeds" in text
    for picture in ("results-cells-instance-10-64.jpg", "results-curves.png"):
        assert picture in text
        assert (tmp_path / picture).stat().st_size < 150_000
    own_data.main(["page", str(tmp_path / "runs"), "--page", str(page), "--pictures", "other"])
    assert ".jpg" not in page.read_text(encoding="utf-8")
    page.write_text("without marks")
    with pytest.raises(ValueError, match="runs"):
        own_data.main(["page", str(tmp_path / "runs"), "--page", str(page)])


def test_whole_runs_have_a_table_of_their_own(tmp_path):
    save_run(tmp_path / "runs", "whole", 0, 0.25, steps=1005)
    (tmp_path / "runs" / "whole-0-1005" / "curves.png").write_bytes(b"curves")
    page = tmp_path / "results.md"
    page.write_text("<!-- whole -->\n<!-- /whole -->\n<!-- runs -->\nshort\n<!-- /runs -->\n", encoding="utf-8")
    own_data.main(["page", str(tmp_path / "runs"), "--page", str(page)])
    text = page.read_text(encoding="utf-8")
    assert "| cells, instance | 1,005 of 2 | 64² | **25.0 AP** | 50.0 AP50 | 13.1 | 1.0 GiB |" in text
    assert "![curves](results-cells-instance-1005-64-curves.png)" in text
    assert (tmp_path / "results-cells-instance-1005-64-curves.png").read_bytes() == b"curves"
    assert (tmp_path / "results-cells-instance-1005-64.jpg").is_file()
    assert "<!-- runs -->\nshort\n<!-- /runs -->" in text


def test_held_out_images_are_not_trained_on(tmp_path, monkeypatch):
    """The data has no validation split."""
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
        for number in range(6):
            Image.fromarray(np.eye(8, dtype=np.uint8)).save(tmp_path / folder / f"{number}.png")
    trained = []

    def build_trainer(data, model, args):
        train, *_ = read_data(data, args, starting_point(model, args))
        trained.extend(train.with_format(None)["file_name"][:])
        raise SystemExit

    monkeypatch.setattr(own_data, "build_trainer", build_trainer)
    command = ["train", "ours", "--data", str(tmp_path), "--task", "semantic", "--weights", "none"]
    with pytest.raises(SystemExit):
        own_data.main([*command, "--output", str(tmp_path / "run")])
    options = SimpleNamespace(data=str(tmp_path), task="semantic", ignore_ids=None)
    splits = [own_data.load_split(options, split)[0]["file_name"][:] for split in ("train", "val")]
    assert splits[0] == trained
    assert not set(splits[0]) & set(splits[1])


@pytest.mark.slow  # three trainings of a ViT-S
@pytest.mark.parametrize("variant", ["ours", "lora", "built-in-1e-4"])
def test_a_run_of_each_kind(tmp_path, variant):
    from safetensors.torch import save_file

    from eomt import EoMTConfig, EoMTForUniversalSegmentation
    from eomt.modeling_eomt import convert_to_authors

    config = EoMTConfig.for_backbone("vit_small_patch14_dinov2", image_size=64)
    state = convert_to_authors(EoMTForUniversalSegmentation(config))
    prefix = "network.encoder.backbone."
    backbone = {k.removeprefix(prefix): v.contiguous() for k, v in state.items() if k.startswith(prefix)}
    save_file(backbone, tmp_path / "weights.safetensors")
    make_shapes(tmp_path / "data", train=4, val=2)
    command = ["train", variant, "--data", str(tmp_path / "data"), "--task", "panoptic", "--steps", "2", "--batch", "2"]
    command += ["--weights", str(tmp_path / "weights.safetensors"), "--output", str(tmp_path / "run")]
    own_data.main([*command, "--image-size", "64"])
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (run["variant"], run["metric"], len(run["images"])) == (variant, "pq", 2)
    assert 0 <= run["value"] <= 1
    assert (tmp_path / "run" / "worst.jpg").is_file()
