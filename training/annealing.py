"""Mask annealing (paper §3.3, App. A): each masked block's attention mask is dropped more and more often, then always.

A run of T steps has six phases of T/6: all blocks masked in the first, none in the last; in between one block after the
other goes from P = 1 to P = 0, the earliest first, each during one phase.
"""

import math
from collections.abc import Callable, Sequence

from accelerate.utils import extract_model_from_parallel
from transformers import TrainerCallback

from ..configuration.recipes import annealing_steps

__all__ = ["MaskAnnealingCallback", "annealing_steps", "mask_annealing_probability"]


def mask_annealing_probability(step: int, start: int, end: int, power: float = 0.9) -> float:
    """Optimizer steps done → probability that a query keeps its mask: 1 before `start`, 0 from `end` on,
    (1 − (step − start)/(end − start))^power in between (§3.3: polynomial, power 0.9)."""
    if step >= end:
        return 0.0
    if step < start:
        return 1.0
    return (1.0 - (step - start) / (end - start)) ** power


class MaskAnnealingCallback(TrainerCallback):
    """Sets the model's mask probabilities before every training batch; works in the stock `transformers.Trainer`.

    The batch after t optimizer steps uses P(t), a resumed run included: nothing is remembered but the steps, and those
    follow from the run's length. Logged as `attn_mask_prob_<i>`, i = 0 the earliest masked block.

    Args:
        start_steps, end_steps: optimizer steps, one per masked block. None: `annealing_steps` of the run's length.
        power: exponent of the decay.
    """

    def __init__(
        self, start_steps: Sequence[int] | None = None, end_steps: Sequence[int] | None = None, power: float = 0.9
    ):
        if (start_steps is None) != (end_steps is None):
            raise ValueError("give both start_steps and end_steps, or neither to derive them from the run's length")
        if start_steps is not None and len(start_steps) != len(end_steps):
            raise ValueError(f"{len(start_steps)} start_steps but {len(end_steps)} end_steps: give one pair per block")
        for start, end in zip(start_steps or (), end_steps or ()):
            if end < start:
                raise ValueError(f"annealing starts at step {start} and ends at {end}; give an end that is not before")
        self.start_steps = start_steps
        self.end_steps = end_steps
        self.power = power
        self.probabilities: list[float] = []
        self.settled_at: float = 0
        "Step from which the probabilities do not change any more; known when training begins."

    def steps(self, max_steps: int, num_blocks: int) -> tuple[Sequence[int], Sequence[int]]:
        if self.start_steps is None:
            return annealing_steps(max_steps, num_blocks)
        if len(self.start_steps) != num_blocks:
            raise ValueError(
                f"{len(self.start_steps)} annealing steps for a model with num_blocks={num_blocks}: give one per block"
            )
        return self.start_steps, self.end_steps

    def probabilities_at(self, state, num_blocks: int) -> list[float]:
        starts, ends = self.steps(state.max_steps, num_blocks)
        return [
            mask_annealing_probability(state.global_step, start, end, self.power) for start, end in zip(starts, ends)
        ]

    def _set(self, state, model) -> None:
        model = extract_model_from_parallel(model, keep_torch_compile=False)
        self.probabilities = self.probabilities_at(state, model.config.num_blocks)
        model.set_attn_mask_probs(self.probabilities)

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self._set(state, model)
        _, ends = self.steps(state.max_steps, len(self.probabilities))
        self.settled_at = max((end for end in ends if end < math.inf), default=0)

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        self._set(state, model)  # also after an evaluation that turned masking off

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self._set(state, model)  # a checkpoint saved now holds what the next batch uses

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not logs or "loss" not in logs or "attn_mask_prob_0" in logs:  # the latter: `EoMTTrainer.log` was first
            return
        values = {f"attn_mask_prob_{i}": probability for i, probability in enumerate(self.probabilities)}
        logs.update(values)  # for the callbacks after this one
        if state.log_history and state.log_history[-1].get("step") == state.global_step:
            state.log_history[-1].update(values)


class PlannedAnnealing(MaskAnnealingCallback):
    """Annealing whose steps come from `plan(total_steps, num_blocks)` → (starts, ends) at the start of the run."""

    def __init__(self, plan: Callable[[int, int], tuple], power: float = 0.9):
        super().__init__(power=power)
        self.plan = plan

    def steps(self, max_steps: int, num_blocks: int) -> tuple[Sequence[float], Sequence[float]]:
        return self.plan(max_steps, num_blocks)
