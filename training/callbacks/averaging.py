"""The exponential moving average of the weights (EMA), which is evaluated and saved in place of the last ones."""

from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate.utils import extract_model_from_parallel
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

FILE = "average.safetensors"


class AveragingCallback(TrainerCallback):
    """average ← d · average + (1 − d) · weights after every step; d = min(decay, (1 + t)/(10 + t)) after t steps.

    The first steps count less, as the average would hold on to the start for 1/(1 − decay) steps. A checkpoint keeps
    weights and average; after training the model has the average.
    """

    def __init__(self, decay: float):
        self.decay = decay
        self.average: dict[str, torch.Tensor] | None = None
        self._model = None

    def _weights(self) -> dict[str, torch.Tensor]:
        return {name: p.data for name, p in self._model.named_parameters() if p.requires_grad}

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self._model = extract_model_from_parallel(model, keep_torch_compile=False)
        if self.average is None:
            self.average = {name: value.clone() for name, value in self._weights().items()}

    @torch.no_grad()
    def on_step_end(self, args, state, control, **kwargs):
        weights, steps = self._weights(), state.global_step
        share = 1 - min(self.decay, (1 + steps) / (10 + steps))
        torch._foreach_lerp_([self.average[name] for name in weights], list(weights.values()), share)

    def on_train_end(self, args, state, control, **kwargs):
        for name, value in self._weights().items():
            value.copy_(self.average[name])
        self._model = None

    @contextmanager
    def applied(self):
        """The model with the average in it; before and after training it is as it is."""
        if self._model is None:
            yield
            return
        weights = self._weights()
        kept = {name: value.clone() for name, value in weights.items()}
        try:
            for name, value in weights.items():
                value.copy_(self.average[name])
            yield
        finally:
            for name, value in weights.items():
                value.copy_(kept[name])

    def save(self, folder: str) -> None:
        save_file({name: value.contiguous() for name, value in self.average.items()}, Path(folder, FILE))

    def load(self, folder: str, device) -> None:
        """The average of a checkpoint; `ValueError` where its run made none."""
        file = Path(folder, FILE)
        if not file.is_file():
            raise ValueError(f"{folder} has no {FILE}: its run made no average; resume it without ema")
        self.average = {name: value.to(device) for name, value in load_file(file).items()}
