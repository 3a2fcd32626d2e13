"""Which weights of a run are evaluated and saved: the average instead of the last, LoRA's differences merged in."""

from .callbacks.averaging import AveragingCallback
from .lora import merged_state_dict


class WeightsMixin:
    """Mixin of a `Trainer` with `args.ema` and `args.lora`.

    A checkpoint to resume from (`_staged`) has everything as it is: weights, differences and average apart.
    """

    averaging: AveragingCallback | None = None

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        if self.averaging is None:
            return super().evaluate(*args, **kwargs)
        with self.averaging.applied():
            return super().evaluate(*args, **kwargs)

    def _save(self, output_dir=None, state_dict=None) -> None:
        if self.args.lora and not self._staged:
            state_dict = merged_state_dict(self.accelerator.unwrap_model(self.model))
        super()._save(output_dir, state_dict)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.averaging is not None and self.args.should_save:
            self.averaging.save(output_dir)

    def _load_optimizer_and_scheduler(self, checkpoint) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if self.averaging is not None and checkpoint is not None:
            self.averaging.load(checkpoint, self.args.device)
