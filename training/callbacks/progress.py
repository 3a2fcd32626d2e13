"""A run on the terminal: one bar, and one readable line a log instead of a dictionary of twenty numbers."""

import math

from transformers.trainer_callback import PrinterCallback, ProgressCallback

from ...configuration import TASK_ROWS
from ..run_card import readable

DETAILS = ("sq", "rq", "pq_things", "pq_stuff", "ap_50", "ap_75", "overall_accuracy", "loss")
PARTS = (("mask", "mask"), ("dice", "dice"), ("class", "cross_entropy"))


def describe(logs: dict) -> str | None:
    """A log entry → its line; None for what is not worth one."""
    if "loss" in logs:
        parts = [f"{name} {logs[f'loss_{key}']:.3f}" for name, key in PARTS if f"loss_{key}" in logs]
        masks = [f"{value:.2f}" for key, value in sorted(logs.items()) if key.startswith("attn_mask_prob_")]
        rates = [f"lr {logs.get('learning_rate', math.nan):.2e}"]
        if "learning_rate_first_block" in logs:  # not of a frozen backbone
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


class ReadableProgress(ProgressCallback):
    """The stock bars; logs as `describe` words them."""

    @classmethod
    def replace_stock(cls, trainer) -> None:
        """Put this in the place of the stock Trainer's progress bar and printer."""
        trainer.remove_callback(ProgressCallback)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(cls())

    def on_log(self, args, state, control, logs=None, **kwargs):
        line = describe(logs or {})
        if state.is_world_process_zero and self.training_bar is not None and line:
            self.training_bar.write(f"step {state.global_step}: {line}")
