"""`make figures`: the charts of README and docs, from the reported numbers, this library's code and run folders.

    python -m benchmarks.figures [--output docs/figures] [--run RUN] [--ladder RUNS]

Without runs, everything that needs none is drawn. `benchmarks.pictures` draws what needs photographs.
"""

import argparse
import os
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from eomt.benchmarking.plot import plot_quality_and_speed
from eomt.benchmarking.runs import find_runs
from eomt.configuration import TASK_ROWS, EoMTConfig
from eomt.configuration.paper import REPORTED
from eomt.inference.writing import read_json, write_atomic
from eomt.training import annealing_steps, mask_annealing_probability

WIDTH = 8.0  # inches of a whole figure; at 120 dots an inch about the width of a README
QUERIES, PREFIX, PATCHES = "#e8743b", "#8b95a5", "#5b8def"
STEPS = (
    "ViT-Adapter + Mask2Former",
    "without ViT-Adapter",
    "without pixel decoder",
    "without multi-scale features",
    "without Transformer decoder",
    "without masks at inference: EoMT",
)


def save(figure: Figure, path: Path) -> None:
    figure.set_facecolor("white")
    write_atomic(path, lambda part: figure.savefig(part, dpi=120, format="png"))
    print(path)


def bare(axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def figure_1(path: Path) -> None:
    """The paper's Figure 1: reported PQ and speed of EoMT and of ViT-Adapter + Mask2Former."""
    points = [
        {
            "point": row.backbone,
            "family": row.method,
            "images_per_second": row.fps,
            "quality": row.value,
            "parameters": 1e6 * row.parameters,
        }
        for row in REPORTED
        if row.table == "Table 3" and row.method in ("EoMT", "ViT-Adapter + Mask2Former")
    ]
    write_atomic(
        path, lambda part: plot_quality_and_speed(points, part, "PQ on COCO in %, as reported", "H100, as reported")
    )
    print(path)


def ladder(path: Path, runs: Path | None) -> None:
    """Table 1: what each step costs and gains; beside it runs of `benchmarks.ladder_in_small`."""
    rows = [row for row in REPORTED if row.table == "Table 1"]
    own = [read_json(file) for file in sorted(runs.rglob("run.json"))] if runs else []
    figure = Figure(figsize=(WIDTH, 6.0 if own else 3.8), layout="constrained")
    panels = figure.subplots(2, 1, height_ratios=(1.8, 1)) if own else [figure.add_subplot()]
    axes = panels[0]
    speeds, values = [row.fps for row in rows], [row.value for row in rows]
    axes.plot(speeds, values, color=PREFIX, linewidth=1.5, zorder=1)
    axes.scatter(speeds, values, 90, c=[*[PATCHES] * 4, QUERIES, QUERIES], edgecolor="white", zorder=2)
    places = ((10, -3), (-2, -17), (-4, 10), (10, -3), (10, 2), (-4, -17))
    for step, (place, row) in enumerate(zip(places, rows)):
        side = "right" if step in (2, 5) else "left"
        text = f"{step}  {STEPS[step]}"
        axes.annotate(text, (row.fps, row.value), xytext=place, textcoords="offset points", fontsize=9, ha=side)
    axes.set(xlim=(20, 140), ylim=(55.8, 57.25), xlabel="images per second, batch 1 (H100)", ylabel="PQ in %")
    axes.set_title("reported: ViT-L on COCO at 640²", fontsize=10, loc="left")
    bare(axes)
    if own:
        _own_ladder(panels[1], own)
    save(figure, path)


def _own_ladder(axes, runs: list[dict]) -> None:
    for start, label, color in (("pretrained", "pre-trained", QUERIES), ("random", "random", PREFIX)):
        if not (here := [run for run in runs if run["start"] == start]):
            continue
        steps = sorted({run["step"] for run in here})
        means = [100 * np.mean([run["value"] for run in here if run["step"] == step]) for step in steps]
        axes.plot(steps, means, marker="o", color=color, label=f"{label} weights")
    run = runs[0]
    axes.set(xlabel="step", ylabel=f"{TASK_ROWS[run['task']].metric} in %", xticks=range(6))
    axes.set_title(f"here: {run['data']}, {run['steps']} training steps", fontsize=10, loc="left")
    axes.legend(fontsize=8, frameon=False)
    bare(axes)


def annealing(path: Path, run: Path | None, num_blocks: int = 4) -> None:
    """Each masked block's probability over a run: as planned, and as a run logged it."""
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    panels = figure.subplots(1, 2 if run else 1, sharey=True, squeeze=False)[0]
    total = 6000
    starts, ends = annealing_steps(total, num_blocks)
    steps = np.arange(total + 1)
    for block, (start, end) in enumerate(zip(starts, ends)):
        values = [mask_annealing_probability(step, start, end) for step in steps]
        _probability(panels[0], steps / total, values, block, num_blocks, "-")
    panels[0].set(xlabel="share of the run", ylabel="probability of a mask", xticks=np.arange(7) / 6)
    panels[0].set_xticklabels(["0", "1/6", "2/6", "3/6", "4/6", "5/6", "1"])
    panels[0].set_title(f"the rule, masked blocks 1 to {num_blocks}", fontsize=10, loc="left")
    if run:
        (logged,) = find_runs([str(run)])
        blocks = sum(f"attn_mask_prob_{i}" in logged.log[0] for i in range(20))
        for block in range(blocks):
            _probability(panels[1], *logged.series(f"attn_mask_prob_{block}"), block, blocks, ".:")
        panels[1].set(xlabel="optimizer step")
        panels[1].set_title(f"a run's log, masked blocks 1 to {blocks}", fontsize=10, loc="left")
    for axes in panels:
        bare(axes)
    save(figure, path)


def _probability(axes, steps, values, block: int, count: int, style: str) -> None:
    """One block's line, with its number beside the middle of its fall."""
    color = _shade(block, count)
    axes.plot(steps, values, style, color=color, markersize=7)
    middle = np.interp(-0.5, -np.asarray(values), steps)
    axes.annotate(f"{block + 1}", (middle, 0.5), (7, 0), textcoords="offset points", fontsize=10, color=color)


def _shade(index: int, count: int):
    """From orange, the earliest block, to blue."""
    share = index / max(1, count - 1)
    first, last = (np.array([int(c[i : i + 2], 16) for i in (1, 3, 5)]) / 255 for c in (QUERIES, "#2b5fd0"))
    return tuple(first + share * (last - first))


def tokens(path: Path, name: str = "vit_large_patch14_reg4_dinov2") -> None:
    """The sequence in every block, and what becomes of it, by the configuration."""
    config = EoMTConfig.for_backbone(name, image_size=640, task="panoptic", num_labels=133)
    depth, joint = config.num_hidden_layers, config.num_blocks
    down, across = config.grid_size
    figure = Figure(figsize=(WIDTH, 3.5), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlim=(-8.2, depth + 14), ylim=(-0.26, 1.26))
    axes.axis("off")
    bottom = 0.12 + 0.62
    for block in range(depth):
        axes.add_patch(Rectangle((block + 0.1, 0.12), 0.8, 0.62, color=PATCHES, linewidth=0))
        axes.add_patch(Rectangle((block + 0.1, bottom), 0.8, 0.05, color=PREFIX, linewidth=0))
        if block >= depth - joint:
            axes.add_patch(Rectangle((block + 0.1, bottom + 0.05), 0.8, 0.16, color=QUERIES, linewidth=0))
    axes.add_patch(Rectangle((-7.9, 0.18), 5.6, 0.5, facecolor="#eef3fe", edgecolor=PATCHES, linewidth=1))
    for line in range(1, 6):
        axes.plot([-7.9 + 5.6 * line / 6] * 2, [0.18, 0.68], color=PATCHES, linewidth=0.6)
        axes.plot([-7.9, -2.3], [0.18 + 0.5 * line / 6] * 2, color=PATCHES, linewidth=0.6)
    arrow = {"arrowstyle": "-|>", "color": "#444", "linewidth": 1.2}
    axes.annotate("", (-0.1, 0.43), (-2.2, 0.43), arrowprops=arrow)
    first = depth - joint
    axes.annotate("", (first + 0.5, bottom + 0.24), (first + 0.5, bottom + 0.42), arrowprops=arrow)
    text = {"fontsize": 9, "ha": "center", "color": "#222"}
    axes.text(first + 0.5, bottom + 0.45, f"{config.num_queries} queries join", **text)
    axes.text(-5.1, 0.73, f"{down} × {across} patches", **text)
    axes.text(first / 2, bottom + 0.12, f"{config.num_prefix_tokens} class and register tokens", **text)
    axes.text(first / 2, -0.03, f"L1 = {first} blocks: the pre-trained ViT as it is", **text)
    axes.text(depth, -0.18, f"L2 = {joint} blocks: queries and patches together", **text | {"ha": "right"})
    for left, right, height in ((0.1, first - 0.1, 0.07), (first + 0.1, depth - 0.1, 0.07)):
        axes.plot([left, right], [height, height], color="#444", linewidth=1)
    axes.plot([first + joint / 2] * 2, [0.07, -0.1], color="#444", linewidth=0.8)
    boxes = (
        (0.84, QUERIES, f"class of each query\nLinear → {config.num_labels} + “no object”"),
        (0.50, QUERIES, "mask vector of each query\nMLP"),
        (0.16, PATCHES, f"features, enlarged\n{4 * down} × {4 * across} cells"),
    )
    for height, color, label in boxes:
        box = Rectangle((depth + 2.2, height - 0.13), 11, 0.26, facecolor="white", edgecolor=color, linewidth=1.5)
        axes.add_patch(box)
        axes.text(depth + 7.7, height, label, **text, va="center")
        axes.annotate(
            "", (depth + 2.1, height), (depth + 0.2, bottom + 0.1 if color == QUERIES else 0.4), arrowprops=arrow
        )
    axes.text(depth + 7.7, -0.18, "mask of a query = vector · features", **text)
    save(figure, path)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.figures", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("docs/figures"))
    parser.add_argument("--run", type=Path, help="a finished `eomt train --masking annealed`, for its log")
    parser.add_argument("--ladder", type=Path, metavar="RUNS", help="folder of `benchmarks.ladder_in_small`")
    options = parser.parse_args(argv)
    options.output.mkdir(parents=True, exist_ok=True)
    figure_1(options.output / "figure-1.png")
    ladder(options.output / "ladder.png", options.ladder)
    annealing(options.output / "annealing.png", options.run)
    tokens(options.output / "tokens.png")


if __name__ == "__main__":
    os.environ.setdefault("MPLBACKEND", "agg")
    main()
