"""What `eomt compare` does: training runs side by side, as a table and a picture of their curves."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..configuration import TASK_ROWS
from ..inference.writing import read_json
from .text_table import text_table

STATE, OPTIONS = "trainer_state.json", "options.json"


@dataclass(frozen=True)
class Run:
    """One folder that `eomt train` or the Trainer wrote."""

    name: str
    log: list[dict]
    "`trainer.state.log_history`."
    options: dict
    metric: str | None
    "Title of the task's metric: PQ, AP or mIoU; None where it was not evaluated."
    values: list[tuple[int, float]]
    "(step, percent) of each evaluation."
    steps: int
    planned: int
    seconds: float | None

    @property
    def best(self) -> tuple[int, float] | None:
        return max(self.values, key=lambda pair: pair[1], default=None)

    def series(self, key: str) -> tuple[list[int], list[float]]:
        rows = [(row["step"], row[key]) for row in self.log if key in row]
        return [step for step, _ in rows], [value for _, value in rows]


def find_runs(folders: Sequence[str]) -> list[Run]:
    """Folders → those that hold a run; a finished one, or one with checkpoints.

    Raises:
        ValueError: when a folder is missing, or none holds a run.
    """
    for folder in folders:
        if not Path(folder).exists():
            raise ValueError(f"there is no folder {folder!r}")
    found = [(Path(folder), state) for folder in folders if (state := _newest_state(Path(folder))) is not None]
    if not found:
        raise ValueError(f"none of {', '.join(map(repr, folders))} holds a run ({STATE}, or checkpoints with one)")
    return [read_run(folder, state) for folder, state in found]


def read_run(folder: Path, state: Path) -> Run:
    """A run's folder and its newest trainer_state.json → its figures.

    Raises:
        ValueError: for a file that is not a trainer state.
    """
    try:
        content = read_json(state)
        log, steps, planned = content["log_history"], int(content["global_step"]), int(content["max_steps"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{state} is not a state that the Trainer wrote: {error!r}") from None
    options = folder / OPTIONS
    options = read_json(options) if options.is_file() else {}
    rows = TASK_ROWS.values()
    task = next((row for row in rows if any(f"eval_{row.metric_key}" in entry for entry in log)), None)
    key = task and f"eval_{task.metric_key}"
    values = [(int(entry["step"]), 100 * entry[key]) for entry in log if task and key in entry]
    seconds = next((entry["train_runtime"] for entry in reversed(log) if "train_runtime" in entry), None)
    return Run(folder.name, log, options, task and task.metric, values, steps, planned, seconds)


def runs_table(runs: Sequence[Run]) -> str:
    """Runs, best first → aligned text: metric, steps, time, and every option that is not the same in all."""
    every = dict.fromkeys(key for run in runs for key in run.options)
    keys = [key for key in every if len({str(run.options.get(key)) for run in runs}) > 1]
    header = ["run", "best", "at step", "last", "loss", "steps", "time", *keys]
    rows = [[*_figures(run), *(_text(run.options.get(key)) for key in keys)] for run in ranked(runs)]
    return text_table([header, *rows])


def ranked(runs: Sequence[Run]) -> list[Run]:
    return sorted(runs, key=lambda run: -run.best[1] if run.best else 1.0)


def plot_runs(runs: Sequence[Run], path: Path) -> None:
    """Runs → a picture: the metric and the loss of each over its steps."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, ScalarFormatter

    metrics = list(dict.fromkeys(run.metric for run in runs if run.metric))
    figure = Figure(figsize=(5.5 * (len(metrics) + 1), 4), layout="constrained")
    panels = figure.subplots(1, len(metrics) + 1, squeeze=False)[0]
    for k, run in enumerate(ranked(runs)):
        style = {"color": f"C{k % 10}", "linestyle": "-" if k < 10 else "--", "label": run.name}
        for axes, metric in zip(panels, metrics):
            if run.metric == metric:
                axes.plot(*zip(*run.values), marker="o", markersize=4, **style)
        steps, losses = run.series("loss")
        panels[-1].plot(steps, losses, **style)
    for axes, title in zip(panels, [*(f"{metric} in %" for metric in metrics), "loss, sum of all predictions"]):
        axes.set(title=title, xlabel="optimizer step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=8)
    if any(value > 0 for run in runs for value in run.series("loss")[1]):
        panels[-1].set_yscale("log")
        for formatted in (panels[-1].yaxis.set_major_formatter, panels[-1].yaxis.set_minor_formatter):
            formatted(ScalarFormatter())
    figure.savefig(path, dpi=110)


def _newest_state(folder: Path) -> Path | None:
    """A run's newest state: its own, or that of its last checkpoint."""
    if (folder / STATE).is_file():
        return folder / STATE
    states = [state for state in folder.glob(f"checkpoint-*/{STATE}") if state.parent.name.split("-")[-1].isdecimal()]
    return max(states, key=lambda state: int(state.parent.name.split("-")[-1]), default=None)


def _figures(run: Run) -> list[str]:
    losses = run.series("loss")[1]
    best = run.best
    return [
        run.name,
        f"{run.metric} {best[1]:.1f}" if best else "–",
        f"{best[0]:,}" if best else "–",
        f"{run.values[-1][1]:.1f}" if run.values else "–",
        f"{losses[-1]:.3g}" if losses else "–",
        f"{run.steps:,}" if run.steps == run.planned else f"{run.steps:,} of {run.planned:,}",
        _duration(run.seconds),
    ]


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60}:{minutes % 60:02d} h"
    return f"{minutes} min" if seconds >= 120 else f"{seconds:.0f} s"


def _text(value) -> str:
    if value is None:
        return "–"
    return f"{value:g}" if isinstance(value, float) else str(value)
