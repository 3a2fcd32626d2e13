"""FSDP2 over two gloo processes: after an evaluation a sharded step gives the loss and weights of a
plain one; launch configurations."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from eomt.modeling_eomt import EoMTForUniversalSegmentation
from eomt.training import layerwise_lr_groups
from tests.training.runs import fixed_points, one_step
from tests.training.tiny import tiny_model

CONFIGS = Path(__file__).parent.parent.parent / "training" / "configs"


def test_sharded_step_equals_the_plain_one(tmp_path, monkeypatch):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run(
        [*launch, "-m", "tests.training.runs", "fsdp", str(tmp_path)],
        check=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    sharded = torch.load(tmp_path / "step.pt")
    monkeypatch.setattr(torch, "rand", fixed_points)
    model = tiny_model().train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    model.set_attn_mask_probs([1.0, 1.0])
    optimizer = torch.optim.AdamW(layerwise_lr_groups(model, 1e-3), weight_decay=0.05)
    loss = one_step(model, optimizer, range(4))
    assert sharded["loss"].item() == pytest.approx(loss.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        # Adam's first step is ± the learning rate wherever the gradient is not tiny: compare where it clearly is not
        clear = parameter.grad.abs() > 1e-5
        assert torch.allclose(sharded["weights"][name][clear], parameter[clear], atol=1e-6), name
        assert not torch.equal(parameter, before[name])


def test_launch_configurations_are_what_accelerate_reads():
    from accelerate.commands.config.config_args import load_config_from_file

    for name, kind in (("ddp", "MULTI_GPU"), ("fsdp", "FSDP"), ("deepspeed_zero2", "DEEPSPEED")):
        config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
        assert config.distributed_type == kind
        assert config.num_processes == 4
    fsdp = yaml.safe_load((CONFIGS / "fsdp.yaml").read_text())["fsdp_config"]
    assert fsdp["fsdp_transformer_layer_cls_to_wrap"] in EoMTForUniversalSegmentation._no_split_modules
    file = yaml.safe_load((CONFIGS / "deepspeed_zero2.yaml").read_text())["deepspeed_config"]["deepspeed_config_file"]
    assert json.loads((CONFIGS.parent.parent / file).read_text())["train_batch_size"] == "auto"
