"""`eomt demo`: from nothing to a segmented picture in minutes, on a CPU.

Creates a small synthetic data set of shapes in COCO panoptic format, trains a small EoMT from scratch with mask
annealing, evaluates it on held-out images with masking off, saves it, reloads it through the Auto classes and the
pipeline, and writes pictures.
"""

import argparse

from .options import require_at_least


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="eomt demo", description=__doc__.split("\n\n", 1)[1])
    p.add_argument("--output", default="runs/demo", help="folder for data, model, pictures and report.json")
    p.add_argument("--steps", type=int, default=700, help="optimizer steps of 16 images")
    p.add_argument("--train-images", type=int, default=1500, help="number of synthetic training images")
    p.add_argument("--val-images", type=int, default=100, help="number of held-out images")
    p.add_argument("--masking", default="annealed", choices=["annealed", "always", "switched-off", "never"],
                   help="masked attention, as in Table 7 of the paper")  # fmt: skip
    p.add_argument("--seed", type=int, default=0)
    return p


def read(argv: list[str]) -> argparse.Namespace:
    args = parser().parse_args(argv)
    require_at_least(args, 1, "steps", "train_images", "val_images")
    return args


def run(args: argparse.Namespace) -> int:
    from .. import demo

    demo.run(args)
    return 0
