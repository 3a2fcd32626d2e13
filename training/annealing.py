"""Mask annealing (paper §3.3, App. A): the attention mask of each block is dropped more and more often, then always.

A run of T steps has six phases of T/6. All blocks are masked in the first phase, none in the last. Between them, the
probability of each block decays from 1 to 0 during one phase, the earliest block first.
"""

import math
from collections.abc import Callable, Sequence

from accelerate.utils import extract_model_from_parallel
from transformers import TrainerCallback

from ..configuration.recipes import annealing_steps

__all__ = ["MaskAnnealingCallback", "annealing_steps", "mask_annealing_probability"]


def mask_annealing_probability(step: int, start: int, end: int, power: float = 0.9) -> float:
    """Probability that a query keeps its mask after `step` optimizer steps (paper §3.3).

    It is 1 before `start`, (1 − (step − start)/(end − start))^power until `end`, and 0 from there on.
    """
    if step >= end:
        return 0.0
    if step < start:
        return 1.0
    return (1.0 - (step - start) / (end - start)) ** power


class MaskAnnealingCallback(TrainerCallback):
    """Sets the mask probabilities of the model before every training batch. Works in the stock `transformers.Trainer`.

    The batch after t optimizer steps uses P(t), also in a resumed run: the probabilities depend only on the step and
    the length of the run. They are logged as `attn_mask_prob_<i>`, i = 0 for the earliest masked block.

    Args:
        start_steps, end_steps: optimizer steps, one per masked block. None: those of `plan`.
        power: exponent of the decay.
        plan: (total steps, number of masked blocks) → (starts, ends).

    Raises:
        ValueError: for steps that end before they start.
    """

    def __init__(
        self,
        start_steps: Sequence[int] | None = None,
        end_steps: Sequence[int] | None = None,
        power: float = 0.9,
        plan: Callable[[int, int], tuple[Sequence[float], Sequence[float]]] = annealing_steps,
    ):
        for start, end in zip(start_steps or (), end_steps or (), strict=True):
            if end < start:
                raise ValueError(f"annealing starts at step {start} and ends at {end}; give an end after the start")
        self.start_steps = start_steps
        self.end_steps = end_steps
        self.power = power
        self.plan = plan
        self.probabilities: list[float] = []

    def steps(self, max_steps: int, num_blocks: int) -> tuple[Sequence[float], Sequence[float]]:
        if self.start_steps is None:
            return self.plan(max_steps, num_blocks)
        return self.start_steps, self.end_steps

    def settled_at(self, max_steps: int, num_blocks: int) -> float:
        """Step from which the probabilities are constant."""
        _, ends = self.steps(max_steps, num_blocks)
        return max((end for end in ends if end < math.inf), default=0)

    def _set(self, state, model) -> None:
        model = extract_model_from_parallel(model, keep_torch_compile=False)
        starts, ends = self.steps(state.max_steps, model.config.num_blocks)
        self.probabilities = [
            mask_annealing_probability(state.global_step, start, end, self.power) for start, end in zip(starts, ends)
        ]
        model.set_attn_mask_probs(self.probabilities)

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self._set(state, model)

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        self._set(state, model)  # an evaluation may have turned masking off

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self._set(state, model)  # a checkpoint of this step holds the probabilities of the next batch

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not logs or "loss" not in logs or "attn_mask_prob_0" in logs:  # `EoMTTrainer.log` adds them itself
            return
        values = {f"attn_mask_prob_{i}": probability for i, probability in enumerate(self.probabilities)}
        logs.update(values)  # for later callbacks
        if state.log_history and state.log_history[-1].get("step") == state.global_step:
            state.log_history[-1].update(values)
