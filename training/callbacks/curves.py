"""A local picture of a run: loss and its parts, learning rates, metric, mask probability of every block."""

from pathlib import Path

from transformers import TrainerCallback

from ...configuration import TASK_ROWS

RATES = {"learning_rate": "heads", "learning_rate_last_block": "last block", "learning_rate_first_block": "first block"}
PARTS = {"loss_mask": "mask", "loss_dice": "dice", "loss_cross_entropy": "class"}


def plot_curves(log_history: list[dict], path: str | Path) -> None:
    """`trainer.state.log_history` → a png with up to four panels over the optimizer steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    def series(key: str) -> tuple[list, list]:
        rows = [(row["step"], row[key]) for row in log_history if key in row]
        return [step for step, _ in rows], [value for _, value in rows]

    keys = {key for row in log_history for key in row}
    metrics = [
        f"eval_{name}" for name in (*(row.metric_key for row in TASK_ROWS.values()), "loss") if f"eval_{name}" in keys
    ]
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
            axes.plot(*series(key), label=label, marker="o" if len(series(key)[0]) < 20 else None, markersize=3)
        axes.set(title=title, xlabel="optimizer step")
        if title == "loss":
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


class CurvesCallback(TrainerCallback):
    """Keeps `curves.png` in the output folder up to date: at every evaluation, every save and at the end."""

    def __init__(self):
        self._drawn = 0  # rows of the log: an evaluation and the save after it are one picture

    def _draw(self, args, state):
        if state.is_world_process_zero and len(state.log_history) != self._drawn:
            plot_curves(state.log_history, Path(args.output_dir, "curves.png"))
            self._drawn = len(state.log_history)

    def on_evaluate(self, args, state, control, **kwargs):
        self._draw(args, state)

    def on_save(self, args, state, control, **kwargs):
        self._draw(args, state)

    def on_train_end(self, args, state, control, **kwargs):
        self._draw(args, state)
