"""Two-stage warm-up, then polynomial decay (the authors' code; paper §4.1 names the decay, power 0.9).

First the new heads warm up while the pre-trained backbone stands still, then the backbone does.
"""

from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def learning_rate_factor(
    step: int, is_backbone: bool, warmup_steps: tuple[int, int], total_steps: int, power: float
) -> float:
    """Optimizer steps done → factor on the group's learning rate.

    Heads: linear 0 → 1 in w1 steps, then (1 − (t−w1)/(T−w1))^power.
    Backbone: 0 for w1 steps, linear 0 → 1 in w2 steps, then (1 − (t−w1−w2)/(T−w1−w2))^power.
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
    """Optimizer whose groups say "is_backbone" (see `layerwise_lr_groups`) → scheduler to step after every update.

    Args:
        warmup_steps: (heads, backbone after that), optimizer steps.
        total_steps: the run's length T in optimizer steps; the rate is 0 from there on.
        power: exponent of the decay.
    """
    if total_steps is None or total_steps < 1:
        raise ValueError(f"total_steps={total_steps}: give the run's length in optimizer steps")
    if len(warmup_steps) != 2 or min(warmup_steps) < 0:
        raise ValueError(f"warmup_steps={warmup_steps}: give two step counts, for the heads and then for the backbone")
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
