"""Two gloo processes with half the batch each give the losses and gradients of one with the whole batch."""

import json
import os
import subprocess
import sys

import pytest
import torch

from tests.training.runs import whole_batches


def test_two_processes_equal_one(tmp_path, monkeypatch):
    both = tmp_path / "both"
    both.mkdir()
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run(
        [*launch, "-m", "tests.training.runs", "ddp", str(both)],
        check=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    monkeypatch.setattr(torch, "rand", torch.rand)  # restored after whole_batches replaces it
    alone = whole_batches(tmp_path / "alone", 4)

    gradients = torch.load(both / "gradients.pt")
    assert gradients.keys() == alone.gradients.keys()
    for name, gradient in alone.gradients.items():
        assert torch.allclose(gradients[name], gradient, atol=1e-7, rtol=1e-4), name
    logs = [row for row in json.loads((both / "logs.json").read_text()) if "loss" in row]
    expected = [row for row in alone.state.log_history if "loss" in row]
    assert len(logs) == len(expected) == 2
    for found, row in zip(logs, expected):
        for key in row:
            assert found[key] == pytest.approx(row[key], rel=1e-5), key
    files = {path.name for path in (both / "checkpoint-2").iterdir()}
    assert {"rng_state_0.pth", "rng_state_1.pth", "model.safetensors", "optimizer.pt"} <= files
    assert not (both / ".saving").exists()
