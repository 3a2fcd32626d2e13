"""Callbacks of a run: average of the weights, early stopping, stop at a signal, curves, readable progress."""

import math
import signal
import threading
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate.utils import extract_model_from_parallel
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from ..configuration import TASK_ROWS
from .card import readable

AVERAGE_FILE = "average.safetensors"
SIGNALS = (signal.SIGINT, signal.SIGTERM)
RATES = {"learning_rate": "heads", "learning_rate_last_block": "last block", "learning_rate_first_block": "first block"}
PARTS = {"loss_mask": "mask", "loss_dice": "dice", "loss_cross_entropy": "class"}
DETAILS = ("sq", "rq", "pq_things", "pq_stuff", "ap_50", "ap_75", "overall_accuracy", "loss")


class AveragingCallback(TrainerCallback):
    """Exponential average of the weights: average = d · average + (1 − d) · weights after every step.

    After t steps d = min(decay, (1 + t)/(10 + t)): with a constant decay the initial weights would dominate for
    1/(1 − decay) steps. The average is in float32, as small steps would round to zero in bfloat16. A checkpoint holds
    weights and average. At the end of training the model has the average.
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
            self.average = {name: value.float().clone() for name, value in self._weights().items()}

    @torch.no_grad()
    def on_step_end(self, args, state, control, **kwargs):
        weights, steps = self._weights(), state.global_step
        share = 1 - min(self.decay, (1 + steps) / (10 + steps))
        averages = [self.average[name] for name in weights]
        torch._foreach_lerp_(averages, [value.float() for value in weights.values()], share)

    def on_train_end(self, args, state, control, **kwargs):
        for name, value in self._weights().items():
            value.copy_(self.average[name])
        self._model = None

    @contextmanager
    def applied(self):
        """Context in which the model has the average as its weights. No effect outside training."""
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
        save_file({name: value.contiguous() for name, value in self.average.items()}, Path(folder, AVERAGE_FILE))

    def load(self, folder: str, device) -> None:
        """Read the average from a checkpoint."""
        average = load_file(Path(folder, AVERAGE_FILE))
        self.average = {name: value.float().to(device) for name, value in average.items()}


class PatienceCallback(TrainerCallback):
    """Stops training after `patience` evaluations without improvement.

    Only evaluations after mask annealing count: before, training is masked and evaluation is not. They are read from
    the log, so that a resumed run stops at the same step as an uninterrupted one.
    """

    def __init__(self, trainer, patience: int):
        self.trainer, self.patience = trainer, patience

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        control.should_training_stop = control.should_training_stop or self.is_over(args, state)

    def is_over(self, args, state) -> bool:
        """Whether the log of a run has enough evaluations without improvement."""
        key = "eval_" + args.metric_for_best_model.removeprefix("eval_")
        values = {row["step"]: row[key] for row in state.log_history if math.isfinite(row.get(key, math.nan))}
        if not values:  # the images have no ground truth
            return False
        best_value = max(values.values()) if args.greater_is_better else min(values.values())
        best_step = next(step for step, value in values.items() if value == best_value)
        settled = self.trainer.annealing.settled_at(state.max_steps, self.trainer.model.config.num_blocks)
        return sum(step > max(best_step, settled) for step in values) >= self.patience


class InterruptionCallback(TrainerCallback):
    """Saves a checkpoint and stops after Ctrl-C or SIGTERM (a preempted job).

    A second Ctrl-C, or a signal before the first step, stops at once. A second SIGTERM does not: Slurm signals all
    processes of a job, and torchrun passes its own SIGTERM on to its processes.
    """

    def __init__(self, accelerator):
        self.accelerator = accelerator
        self.started = self.signalled = False

    def on_train_begin(self, args, state, control, **kwargs):
        self.started = True

    def on_step_end(self, args, state, control, **kwargs):
        if self.accelerator.num_processes > 1:  # all processes stop at the same step
            flag = torch.tensor(float(self.signalled), device=self.accelerator.device)
            self.signalled = bool(self.accelerator.reduce(flag, reduction="sum") > 0)
        if self.signalled:
            control.should_save = control.should_training_stop = True

    @contextmanager
    def listening(self):
        """Catch the signals during training, then raise KeyboardInterrupt if there was one."""
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread can install handlers
            return
        self.started = self.signalled = False

        def handle(number, frame):
            if not self.started or (self.signalled and number == signal.SIGINT):
                raise KeyboardInterrupt
            self.signalled = True

        handled = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]  # ignored under nohup
        previous = {number: signal.signal(number, handle) for number in handled}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        if self.signalled:
            raise KeyboardInterrupt


class CurvesCallback(TrainerCallback):
    """Updates `curves.png` in the output folder at every evaluation, at every save and at the end."""

    def __init__(self):
        self._drawn = 0  # number of log rows in the file

    def _draw(self, args, state, control, **kwargs):
        if state.is_world_process_zero and len(state.log_history) != self._drawn:
            plot_curves(state.log_history, Path(args.output_dir, "curves.png"))
            self._drawn = len(state.log_history)

    on_evaluate = on_save = on_train_end = _draw


def plot_curves(log_history: list[dict], path: str | Path) -> None:
    """Plot `trainer.state.log_history` to a PNG file: losses, metrics, mask probabilities, learning rates."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    def series(key: str) -> tuple[list, list]:
        rows = [(row["step"], row[key]) for row in log_history if key in row]
        return [step for step, _ in rows], [value for _, value in rows]

    keys = {key for row in log_history for key in row}
    metrics = [f"eval_{name}" for name in (*(row.metric_key for row in TASK_ROWS.values()), "loss")]
    blocks = [key for key in keys if key.startswith("attn_mask_prob_")]
    blocks.sort(key=lambda key: int(key.split("_")[-1]))
    panels = [
        ("loss", [("loss", "sum, all predictions"), *((k, f"{name}, last prediction") for k, name in PARTS.items())]),
        ("evaluation", [(key, key.removeprefix("eval_")) for key in metrics]),
        ("mask probability", [(key, f"masked block {key.split('_')[-1]}") for key in blocks]),
        ("learning rate", list(RATES.items())),
    ]
    panels = [(title, [line for line in lines if line[0] in keys]) for title, lines in panels]
    panels = [panel for panel in panels if panel[1]]
    if not panels:
        return
    figure = Figure(figsize=(4.5 * len(panels), 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        for key, label in lines:
            steps, values = series(key)
            axes.plot(steps, values, label=label, marker="o" if len(steps) < 20 else None, markersize=3)
        axes.set(title=title, xlabel="optimizer step")
        if title == "loss":
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


class ReadableProgress(ProgressCallback):
    """The stock progress bars, with one readable line per log entry instead of a dictionary of twenty numbers."""

    @classmethod
    def replace_stock(cls, trainer) -> None:
        """Replace the stock Trainer's progress bar and printer."""
        trainer.remove_callback(ProgressCallback)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(cls())

    def on_log(self, args, state, control, logs=None, **kwargs):
        line = progress_line(logs or {})
        if state.is_world_process_zero and self.training_bar is not None and line:
            self.training_bar.write(f"step {state.global_step}: {line}")


def progress_line(logs: dict) -> str | None:
    """One line for a log entry; None unless it is a loss or an evaluation."""
    if "loss" in logs:
        parts = [f"{name} {logs[key]:.3f}" for key, name in PARTS.items() if key in logs]
        masks = [f"{value:.2f}" for key, value in sorted(logs.items()) if key.startswith("attn_mask_prob_")]
        rates = [f"lr {logs.get('learning_rate', math.nan):.2e}"]
        if "learning_rate_first_block" in logs:  # missing for a frozen backbone
            rates.append(f"first block {logs['learning_rate_first_block']:.2e}")
        return (
            f"loss {logs['loss']:.3f} (last prediction: {', '.join(parts)})  gradient {logs.get('grad_norm', 0):.2f}  "
            f"{', '.join(rates)}  masks {' '.join(masks)}"
        )
    prefix = next((key.split("_")[0] for key in logs if key.endswith("_runtime")), None)
    if prefix and prefix != "train":
        shown = [*(row.metric_key for row in TASK_ROWS.values()), *DETAILS]
        values = [f"{name} {readable(name, logs[f'{prefix}_{name}'])}" for name in shown if f"{prefix}_{name}" in logs]
        return f"{prefix}: {', '.join(values)} ({logs.get(f'{prefix}_samples_per_second', 0):.2f} images/s)"
    return None
