"""The weights of the best evaluation in a folder of their own, and a stop where there is no better one any more."""

from pathlib import Path

from transformers import TrainerCallback

from ...configuration import TASK_ROWS
from ..files import atomic, write_json
from .annealing import MaskAnnealingCallback

FOLDER, RESULTS = "best", "results.json"


class BestWeightsCallback(TrainerCallback):
    """Keeps the model of the best evaluation, ready for the Auto classes, in `output_dir/best`.

    patience: stop after so many evaluations in a row without a better one; None: never. Evaluations before the last
    block's masks are annealed away do not count: till then a model is evaluated otherwise than it is trained.
    """

    def __init__(self, trainer, keep: bool = True, patience: int | None = None):
        self.trainer, self.keep, self.patience = trainer, keep, patience

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        key = f"eval_{TASK_ROWS[self.trainer.accelerator.unwrap_model(self.trainer.model).config.task].metric_key}"
        values = {row["step"]: row[key] for row in state.log_history if key in row}
        if not values or key not in (metrics or {}):
            return
        best = max(values, key=lambda step: (values[step], -step))  # the first of equals
        if best == state.global_step:
            if self.keep:
                self._save(args, metrics)
        elif self.patience is not None:
            since = max(best, self._annealed(state))
            if sum(step > since for step in values) >= self.patience:
                control.should_training_stop = True

    def _annealed(self, state) -> int:
        """The step from which on nothing is masked any more; 0 where masks do not change."""
        annealing = self.trainer.annealing
        if not isinstance(annealing, MaskAnnealingCallback) or self.trainer.args.masking != "annealed":
            return 0
        blocks = self.trainer.accelerator.unwrap_model(self.trainer.model).config.num_blocks
        return max(annealing.steps(state.max_steps, blocks)[1])

    def _save(self, args, metrics: dict) -> None:
        with self.trainer.inference_masking():  # what was evaluated is what is saved
            self._write(Path(args.output_dir, FOLDER), metrics)

    def _write(self, folder: Path, metrics: dict) -> None:
        if self.trainer.accelerator.num_processes > 1:  # each process takes part in gathering the weights
            self.trainer.save_model(folder)
            if self.trainer.is_world_process_zero():
                write_json(folder / RESULTS, metrics, indent=2)
            return
        with atomic(folder, folder=True, force=True) as part:
            self.trainer.save_model(part)
            write_json(part / RESULTS, metrics, indent=2)
