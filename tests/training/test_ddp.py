"""Two gloo processes with half the batch each give the losses and gradients of one with the whole batch."""

import json
import os
import subprocess
import sys

import pytest
import torch

from eomt.training import EoMTTrainingArguments
from tests.training.runs import train_on_full_batches
from tests.training.tiny import tiny_arguments


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
    monkeypatch.setattr(torch, "rand", torch.rand)  # restored after train_on_full_batches replaces it
    alone = train_on_full_batches(tmp_path / "alone", 4)

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


@pytest.mark.parametrize("case", ["nan", "cli"])
def test_two_processes_stop_together_and_train_together(case, tmp_path):
    """NaN in one rank's batch ends both at once; `torchrun eomt train --bf16` without a GPU is one run, not two."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*launch, "-m", "tests.training.runs", case, str(tmp_path)]
    done = subprocess.run(command, timeout=120, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if case == "nan":
        messages = [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)]
        assert messages[0] == messages[1]
        assert "the loss is nan at step 0" in messages[0]
        assert "image1.png" in messages[0] or "image0.png" in messages[0]
    else:
        assert done.stdout.count("× 2 processes") == 1
        assert (tmp_path / "run" / "model.safetensors").is_file()


def test_processes_that_do_not_find_each_other_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(EoMTTrainingArguments, "world_size", 2)
    with pytest.raises(ValueError, match="WORLD_SIZE is 1, but the processes that found each other are 2"):
        tiny_arguments(tmp_path)
