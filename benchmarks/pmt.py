"""Time and memory with a frozen, shared encoder: fills docs/pmt.md.

python -m benchmarks.pmt                  # three tasks of one image, and a training step; minutes on two CPU cores
python -m benchmarks.pmt runs FOLDER      # the table of trainings by `python -m benchmarks.own_data train`

Random weights: times and memory do not depend on them. Each case runs in a process of its own, for its memory.
"""

import argparse
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import eomt
from eomt import EoMTConfig, EoMTForUniversalSegmentation, EoMTImageProcessor, PMTConfig, PMTForUniversalSegmentation
from eomt.configuration import TASKS
from eomt.speed.measure import device_name, measure_seconds
from eomt.training.card import table

from .own_data import read_runs, variant_table
from .pages import fill_parts

PAGE = Path(__file__).parents[1] / "docs" / "pmt.md"
BACKBONE, SIDE, TRAINED_SIDE, BATCH, REPEATS = "vit_small_patch16_dinov3", 640, 320, 4, 5
TOGETHER = {
    "eomt": "three EoMTs",
    "pmt": "three PMTs, each with its own encoder",
    "shared": "three PMTs that share an encoder",
}
STEPS = {"eomt": "EoMT", "pmt": "PMT", "cached": "PMT with `--cache-features`"}


def model_of(kind: str, task: str = "panoptic", side: int = SIDE):
    if kind == "eomt":
        return EoMTForUniversalSegmentation(EoMTConfig.for_backbone(BACKBONE, side, task, num_labels=133)).eval()
    return PMTForUniversalSegmentation(PMTConfig.for_backbone(BACKBONE, side, task, num_labels=133)).eval()


def segment_three(kind: str, side: int) -> float:
    """Seconds for the three tasks of one square image: the inputs of all tasks have one size."""
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    image = Image.fromarray(pixels)
    models = [model_of(kind, task, side) for task in TASKS]
    processors = [EoMTImageProcessor(task=task, size=side) for task in TASKS]
    if kind == "shared":
        for model in models[1:]:
            model.encoder.load_state_dict(models[0].encoder.state_dict())
            model.share_encoder(models[0])
    return median_seconds(lambda: eomt.segment(image, models, processor=processors))


def training_step(kind: str, side: int) -> float:
    """Seconds of a training step: forward, backward and optimizer."""
    torch.manual_seed(0)
    model = model_of(kind, side=side).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    pixels = torch.randn(BATCH, 3, side, side)
    masks = torch.zeros(BATCH, 8, side, side, dtype=torch.bool)
    for index in range(8):
        masks[:, index, 30 * index : 30 * index + 60] = True
    batch = {"pixel_values": pixels, "mask_labels": masks, "class_labels": torch.arange(8).repeat(BATCH, 1)}
    if kind == "cached":
        grid = model.patch_grid(pixels)
        levels = model.encoder(pixels, model.config.interaction_indices, grid)
        batch["encoder_levels"] = torch.stack(levels, dim=1).half()

    def step() -> None:
        model(**batch, output_auxiliary_logits=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return median_seconds(step)


def median_seconds(run: Callable) -> float:
    return measure_seconds(run, torch.device("cpu"), warm_up=1, repeats=REPEATS)["median"]


def measured(part: str, kind: str, side: int) -> tuple[float, float]:
    """(seconds, peak GiB) of a case in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.pmt", part, kind, "--side", str(side)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    took, memory = map(float, done.stdout.split()[-2:])
    return took, memory / 2**30


def ratios(head: str, rows: dict[str, tuple[float, float]]) -> str:
    """A Markdown table of {name: (seconds, GiB)}."""
    first = next(iter(rows.values()))[0]
    cells = [(name, f"{took:.2f}", f"{took / first:.2f}", f"{gib:.1f} GiB") for name, (took, gib) in rows.items()]
    return table((head, "seconds", "of the first row", "peak memory"), cells)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", default="all", choices=("all", "three", "step", "runs"))
    parser.add_argument("kind", nargs="?", help="a case of three or step, or the folder of runs")
    parser.add_argument("--side", type=int, help=f"of the images; {SIDE}, {TRAINED_SIDE} for a step")
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args(argv)
    if options.part in ("three", "step"):
        case = segment_three if options.part == "three" else training_step
        print(case(options.kind, options.side), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    elif options.part == "runs":
        parts = []
        for (data, task, steps, batch, size), variants in read_runs(Path(options.kind)).items():
            title = f"{data}, {task}: {steps} steps of {batch} images at {size} × {size}."
            parts += [title, variant_table(variants, task)]
        fill_parts(options.page, runs="\n\n".join(parts))
    else:
        three = {name: measured("three", kind, options.side or SIDE) for kind, name in TOGETHER.items()}
        step = {name: measured("step", kind, options.side or TRAINED_SIDE) for kind, name in STEPS.items()}
        place = f"{device_name(torch.device('cpu'))}, {torch.get_num_threads()} threads, torch {torch.__version__}."
        three_table = ratios(f"panoptic, instance and semantic at {options.side or SIDE}²", three)
        step_table = ratios(f"step of {BATCH} images at {options.side or TRAINED_SIDE}²", step)
        fill_parts(options.page, three=three_table, step=f"{step_table}\n\n{place}")


if __name__ == "__main__":
    main()
