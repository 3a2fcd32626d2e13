"""Learning rates and schedules equal the authors'."""

import json
import random

import pytest
import torch
from torch import nn

from eomt.modeling_eomt.weights.key_maps import authors_table
from eomt.training import layerwise_lr_groups, two_stage_warmup_poly_schedule
from eomt.training.optimizer import warmup_cosine_schedule
from tests.models import GOLDEN, tiny_model

CASES = json.loads((GOLDEN / "optimizer.json").read_text())


@pytest.mark.parametrize("case", CASES, ids=["l2 decayed", "l2 at full rate"])
@pytest.mark.parametrize("shuffled", [False, True])
def test_groups_and_schedule_equal_the_authors(case, shuffled):
    model = tiny_model(num_hidden_layers=case["depth"], num_blocks=case["num_blocks"])
    parameters = list(model.named_parameters())
    if shuffled:  # unlike the authors' rates, ours do not depend on the order of named_parameters()
        random.Random(0).shuffle(parameters)
        model.named_parameters = lambda: iter(parameters)
    multipliers, places = case["lr_multiplier_by_parameter"], authors_table(model.config)
    expected = {name: multipliers[places[name].key] for name, _ in parameters}
    groups = layerwise_lr_groups(model, case["lr"], case["llrd"], case["llrd_l2_enabled"])
    found = {group["name"]: group["lr"] / case["lr"] for group in groups}
    assert found == pytest.approx(expected, rel=1e-12)
    heads = {group["name"].split(".")[0] for group in groups if not group["is_backbone"]}
    assert heads == {"query", "class_predictor", "mask_head", "upscale_block"}

    optimizer = torch.optim.AdamW(groups, lr=case["lr"], weight_decay=case["weight_decay"][0])
    schedule = two_stage_warmup_poly_schedule(
        optimizer, case["warmup_steps"], total_steps=case["total_steps"], power=case["poly_power"]
    )
    watched = {
        "backbone_last_block_norm1": f"layers.{case['depth'] - 1}.norm1.weight",
        "backbone_block0_norm1": "layers.0.norm1.weight",
        "class_head": "class_predictor.weight",
    }
    for step in range(case["total_steps"] + 1):
        rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
        for key, rate in case["lr_at_step"].get(str(step), {}).items():
            assert rates[watched[key]] == pytest.approx(rate, rel=1e-9, abs=1e-18), (step, key)
        optimizer.step()
        schedule.step()


def test_rates_of_a_long_run_equal_the_authors():
    """Rates of the heads and the last block in a run of 88,692 steps at 1e-4."""
    watched = ("query.weight", "layers.3.norm1.weight")
    groups = [group for group in layerwise_lr_groups(tiny_model()) if group["name"] in watched]
    optimizer = torch.optim.AdamW(sorted(groups, key=lambda group: group["is_backbone"]))
    schedule = two_stage_warmup_poly_schedule(optimizer, total_steps=88_692)
    for step, head, backbone in [
        (250, 5e-5, 0),
        (1000, 9.949e-5, 5e-5),
        (1500, 9.898e-5, 1e-4),
        (44_346, 5.386e-5, 5.442e-5),
        (73_910, 2.004e-5, 2.025e-5),
    ]:
        rates = [rate * factor(step) for rate, factor in zip(schedule.base_lrs, schedule.lr_lambdas)]
        assert rates == pytest.approx([head, backbone], rel=3e-4)


def test_frozen_layers_have_no_group():
    model = tiny_model()
    model.layers.requires_grad_(False)
    assert not [group for group in layerwise_lr_groups(model) if group["name"].startswith("layers.")]


def test_wrong_rates_and_steps_are_refused():
    model = tiny_model()
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(ValueError, match=r"1\.5"):
        layerwise_lr_groups(model, llrd=1.5)
    with pytest.raises(ValueError, match="-1"):
        two_stage_warmup_poly_schedule(optimizer, (5, -1), total_steps=10)
    with pytest.raises(ValueError, match="-1"):
        warmup_cosine_schedule(optimizer, -1, 10)


def test_warmup_and_cosine_of_pmt():
    optimizer = torch.optim.AdamW([nn.Parameter(torch.ones(1))], lr=2e-4)
    schedule = warmup_cosine_schedule(optimizer, 6000, 88_692)
    rates = [schedule.base_lrs[0] * schedule.lr_lambdas[0](step) for step in (0, 3000, 6000, 47_346, 88_692)]
    assert rates == pytest.approx([0, 1e-4, 2e-4, 1e-4 + 5e-10, 1e-9], rel=1e-6)
