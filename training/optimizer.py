"""The paper's optimization (§4.1): layer-wise learning rates, two-stage warm-up with polynomial decay, accumulation.

Layer-wise decay: each block learns slower than the next one by a factor (0.8). Warm-up: first of the new heads with a
frozen backbone, then of the backbone (authors' code). An accumulated batch has the gradient of the same batch at once.
"""

import math
import re
from functools import partial

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

BACKBONE = ("embeddings.", "layers.", "layernorm.")  # pre-trained; all other parameters start at random
_BLOCK = re.compile(r"layers\.(\d+)\.")
_WRAPPERS = re.compile(r"(?<![^.])(module|_orig_mod|_fsdp_wrapped_module|base_model\.model)\.")  # DDP, FSDP, peft, …


def is_lora(name: str) -> bool:
    """Whether a parameter belongs to a low-rank difference (training/lora.py)."""
    return ".lora_" in name


def is_pretrained(name: str) -> bool:
    """Whether a parameter belongs to the pre-trained backbone, without LoRA. The name can have prefixes of wrappers."""
    return _WRAPPERS.sub("", name).startswith(BACKBONE) and not is_lora(name)


def lr_multiplier(name: str, depth: int, num_blocks: int, llrd: float, llrd_l2_enabled: bool) -> float:
    """Factor on the learning rate of a parameter, by its name in the Hub format.

    Heads and the final norm: 1. Block i: llrd^(depth−1−i). Patch, class, register and position embeddings: as block 0.
    Without `llrd_l2_enabled`, the last `num_blocks` blocks: 1 (DINOv3 recipes).
    """
    if not name.startswith(BACKBONE) or name.startswith("layernorm."):
        return 1.0
    block = _BLOCK.match(name)
    index = int(block[1]) if block else 0
    if block and not llrd_l2_enabled and index >= depth - num_blocks:
        return 1.0
    return llrd ** (depth - 1 - index)


def layerwise_lr_groups(
    model: nn.Module,
    lr: float = 1e-4,
    llrd: float = 0.8,
    llrd_l2_enabled: bool = True,
    backbone_lr: float | None = None,
) -> list[dict]:
    """Optimizer parameter groups, one per trainable tensor: "params", "lr", "name", "is_backbone".

    A rate depends only on the name of the parameter, not on the order of `named_parameters()`. LoRA's matrices have the
    rate of heads. Weight decay is set in the optimizer, for every tensor: also norms, biases, positions and queries
    (authors' code). The authors' `lr_mult` is omitted: their code never multiplies by it, and a value other than 1 has
    only the effect of `llrd_l2_enabled=False`.

    Args:
        model: EoMT or PMT, also wrapped by peft or compiled.
        lr: rate of the heads.
        llrd: factor of the rate from each block to the one before it, in (0, 1].
        llrd_l2_enabled: whether the last `num_blocks` blocks decay, too.
        backbone_lr: rate of the last block of the backbone; `lr` by default, as in the paper. In short runs, random
            heads need a higher rate than a pre-trained backbone.

    Raises:
        ValueError: for `llrd` outside (0, 1].
    """
    if not 0 < llrd <= 1:
        raise ValueError(f"llrd is {llrd}; the layer-wise decay is a factor in (0, 1], 1 turns it off")
    depth = model.config.num_hidden_layers
    num_blocks = model.config.num_blocks if model.config.blocks_are_the_encoders else 0
    groups = []
    for full_name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        name = _WRAPPERS.sub("", full_name)
        factor = 1.0 if is_lora(name) else lr_multiplier(name, depth, num_blocks, llrd, llrd_l2_enabled)
        is_backbone = is_pretrained(name)
        rate = backbone_lr if is_backbone and backbone_lr is not None else lr
        groups.append({"params": [parameter], "lr": rate * factor, "name": name, "is_backbone": is_backbone})
    return groups


def learning_rate_factor(
    step: int, is_backbone: bool, warmup_steps: tuple[int, int], total_steps: int, power: float
) -> float:
    """Factor on the learning rate of a group after t = `step` of T = `total_steps` optimizer steps.

    Heads: linear from 0 to 1 in w1 steps, then (1 − (t−w1)/(T−w1))^power.
    Backbone: 0 for w1 steps, linear from 0 to 1 in w2 steps, then (1 − (t−w1−w2)/(T−w1−w2))^power.
    """
    if step >= total_steps:
        return 0.0
    wait = warmup_steps[0] if is_backbone else 0
    ramp = warmup_steps[1] if is_backbone else warmup_steps[0]
    if step < wait:
        return 0.0
    if step < wait + ramp:
        return (step - wait) / ramp
    return (1 - (step - wait - ramp) / (total_steps - wait - ramp)) ** power


def two_stage_warmup_poly_schedule(
    optimizer: Optimizer,
    warmup_steps: tuple[int, int] = (500, 1000),
    total_steps: int | None = None,
    power: float = 0.9,
) -> LambdaLR:
    """The paper's learning rate schedule, to step after every update.

    Args:
        optimizer: with "is_backbone" in its groups (see `layerwise_lr_groups`).
        warmup_steps: optimizer steps for the heads, then for the backbone.
        total_steps: length T of the run in optimizer steps; the rate is 0 from there on.
        power: exponent of the decay.
    """
    if total_steps is None:
        raise ValueError("total_steps is missing; give the length of the run in optimizer steps")
    if min(warmup_steps) < 0:
        raise ValueError(f"warmup_steps is {warmup_steps}; a number of steps is at least 0")
    return LambdaLR(
        optimizer,
        [
            partial(
                learning_rate_factor,
                is_backbone=group.get("is_backbone", False),
                warmup_steps=tuple(warmup_steps),
                total_steps=total_steps,
                power=power,
            )
            for group in optimizer.param_groups
        ],
    )


def warmup_cosine_schedule(optimizer: Optimizer, warmup_steps: int, total_steps: int, lowest: float = 1e-9) -> LambdaLR:
    """PMT's learning rate schedule: linear from 0 in `warmup_steps`, then a half cosine to the rate `lowest`."""
    if warmup_steps < 0:
        raise ValueError(f"warmup_steps is {warmup_steps}; a number of steps is at least 0")

    def factor(step: int, rate: float) -> float:
        if step < warmup_steps:
            return step / warmup_steps
        share = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        return (lowest + 0.5 * (rate - lowest) * (1 + math.cos(math.pi * share))) / rate

    return LambdaLR(optimizer, [partial(factor, rate=group["lr"]) for group in optimizer.param_groups])


def normalizer_shares(batches: list[dict], config, accelerator) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(share of the masks, share of the class weights) of each batch on this process, among all batches of a step.

    They are known before the matching: an image matches all its targets, at most one per query. In the class loss, a
    matched query has weight 1, others `config.no_object_weight`.
    """
    counts = torch.zeros(len(batches), 2, dtype=torch.float64)
    for row, batch in zip(counts, batches):
        masks = sum(min(len(labels), config.num_queries) for labels in batch["class_labels"])
        queries = len(batch["class_labels"]) * config.num_queries
        row[0], row[1] = masks, masks + (queries - masks) * config.no_object_weight
    counts = counts.float().to(accelerator.device)
    counts = accelerator.reduce(counts, reduction="sum") / accelerator.num_processes  # the mean, as for the loss
    total = counts.sum(0)
    mask_shares = counts[:, 0].clamp(min=1) / total[0].clamp(min=1)
    return list(zip(mask_shares, counts[:, 1] / total[1]))
