"""The comparisons of `make bench` with small images."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest

from benchmarks import speed
from benchmarks.engines import BUILT_IN, OPENVINO, OURS, engine_table, measure_row, rate_table, save_models


def test_small_comparisons_run(capsys):
    """The comparisons assert equal results."""
    speed.compare_postprocessing(64, 1)
    speed.compare_augmentation(5, 64, 1)
    assert len([line for line in capsys.readouterr().out.splitlines() if "×" in line]) == 5


@pytest.mark.slow  # ViT-B
def test_every_comparison_runs(capsys):
    speed.main(["--image-size", "64", "--repeats", "1"])
    printed = capsys.readouterr().out
    assert "photo to 50 segments" in printed
    assert "training step, fp32" in printed


@pytest.mark.slow  # processes that load models
def test_engines_are_compared(tmp_path):
    rows = [BUILT_IN["fp32"], OURS, OPENVINO]
    save_models(tmp_path, rows, "vit_small_patch14_reg4_dinov2", 64)
    found = {}
    for row in rows:
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            found[row] = process.submit(measure_row, tmp_path, row, 1).result()
    expected = found[BUILT_IN["fp32"]]["maps"]
    for measured in found.values():
        assert len(measured["seconds"]) == 2
        shares = [np.mean(ours != theirs) for ours, theirs in zip(measured["maps"], expected)]
        assert max(shares) < 0.01  # near-ties of random weights
    assert len(engine_table(found, rows).splitlines()) == 2 + len(rows)
    assert len(rate_table(found).splitlines()) == 2 + 1
