"""A step's losses: checked to be finite on every process, summed by part, logged as means, kept in checkpoints."""

import math
from collections import defaultdict

import torch
from transformers.utils import logging

from .optimization.optimizer import BACKBONE
from .processes import gather

logger = logging.get_logger(__name__)

LOST_IN_A_ROW = 10  # fp16 losses that may overflow one after the other before the run is given up
UNLOGGED = "UnloggedLosses"  # in a checkpoint's trainer_state.json


class NonFiniteLoss(ValueError):
    """The loss is NaN or infinite; the message has the step and the batch's files."""


class LossesMixin:
    """Mixin of a `Trainer` with `annealing`; its `training_step` sets `_file_names`, its `compute_loss` calls
    `_add_losses`."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._file_names: list[str] | None = None
        self._loss_parts: dict[str, torch.Tensor] = defaultdict(float)  # summed since the last log
        self._lost = self._lost_in_a_row = 0  # batches whose loss overflowed: since the last log, and just now
        self._logged_step = 0
        self._learning_rates: dict[str, float] = {}

    def _add_losses(self, loss: torch.Tensor, parts: dict[str, torch.Tensor]) -> None:
        if self._finite_everywhere(loss, parts):
            for name, value in parts.items():
                self._loss_parts[name] = self._loss_parts[name] + value.detach().float()

    def _finite_everywhere(self, loss: torch.Tensor, parts: dict[str, torch.Tensor]) -> bool:
        """Whether every process's loss is finite. If not, all raise, else the others would wait for the one that does.

        Under fp16 the gradient scaler leaves out a step that overflowed, so only many in a row end the run.
        """
        finite = torch.isfinite(loss).float()
        if self.accelerator.num_processes > 1:
            finite = self.accelerator.reduce(finite, reduction="mean")
        if finite == 1:
            self._lost_in_a_row = 0
            return True
        found = gather(None if torch.isfinite(loss) else self._describe(loss.item(), parts))
        message = next(text for text in found if text)
        self._lost_in_a_row += 1
        if self.accelerator.scaler is None or self._lost_in_a_row >= LOST_IN_A_ROW:
            raise NonFiniteLoss(message)
        self._lost += 1
        logger.warning(f"an fp16 step is left out: {message}")
        return False

    def _describe(self, loss: float, parts: dict[str, torch.Tensor]) -> str:
        wrong = [name for name, value in parts.items() if not math.isfinite(value.item())]
        files = ", ".join(str(name) for name in self._file_names or []) or "unknown (the data set gives no file_name)"
        return (
            f"the loss is {loss} at step {self.state.global_step} ({', '.join(wrong)}); files of the batch: {files}; "
            "look at them, or lower learning_rate or precision"
        )

    def _get_learning_rate(self) -> float:
        """The heads' rate; also notes those of first and last block. Called before the schedule moves on."""
        rates = {group["name"]: float(group["lr"]) for group in self.optimizer.param_groups}
        last = f"layers.{self.accelerator.unwrap_model(self.model).config.num_hidden_layers - 1}."
        for key, prefix in (("first", "layers.0."), ("last", last)):
            rate = next((value for name, value in rates.items() if name.startswith(prefix)), None)
            if rate is not None:  # a frozen backbone has none
                self._learning_rates[f"learning_rate_{key}_block"] = rate
        return next(rate for name, rate in rates.items() if not name.startswith(BACKBONE))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._loss_parts:
            steps = self.state.global_step - self._logged_step - self._lost / self.args.gradient_accumulation_steps
            means = {name: value / max(1, steps) for name, value in self._summed_losses().items()}
            self._forget_losses(self.state.global_step)
            logs |= {"loss": sum(means.values())} | means | self._learning_rates
            logs |= {f"attn_mask_prob_{i}": p for i, p in enumerate(self.annealing.probabilities)}
        super().log(logs, start_time)

    def _summed_losses(self) -> dict[str, float]:
        """Every loss part summed over the steps since the last log, mean over the processes."""
        if not self._loss_parts:
            return {}
        names = sorted(self._loss_parts)
        values = torch.stack([self._loss_parts[name] for name in names])
        return dict(zip(names, self.accelerator.reduce(values, reduction="mean").tolist()))

    def _forget_losses(self, step: int) -> None:
        self._loss_parts.clear()
        self._logged_step, self._lost = step, 0

    def _save_checkpoint(self, model, trial) -> None:
        """Also what is summed for the next log, so that the log of a resumed run is over all of its steps."""
        unlogged = {"losses": self._summed_losses(), "logged_step": self._logged_step, "lost": self._lost}
        self.state.stateful_callbacks[UNLOGGED] = {"args": {}, "attributes": unlogged}
        super()._save_checkpoint(model, trial)

    def _resume_losses(self, state) -> None:
        self._forget_losses(state.global_step)
        unlogged = state.stateful_callbacks.get(UNLOGGED, {}).get("attributes")
        if self._resumed and unlogged:
            for name, value in unlogged["losses"].items():
                self._loss_parts[name] = torch.tensor(value, device=self.args.device)
            self._logged_step, self._lost = unlogged["logged_step"], unlogged["lost"]
