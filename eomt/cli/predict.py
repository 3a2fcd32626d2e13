"""`eomt predict`: photos in, segments out; pictures for people, COCO files and label pngs for machines."""

import argparse
from pathlib import Path

from ..configuration import TASKS
from .options import add_device_and_dtype, add_token_merging, require_at_least, require_merging

MAX_PIXELS = 200_000_000
OVERLAP = 0.25
LEAST_SCORE = 0.7


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="eomt predict",
        description="Segment images and write overlays and machine-readable results. Files that fail are reported at "
        "the end; an interrupted run resumes. Several processes share the work: torchrun --nproc_per_node 4 -m eomt "
        "predict … or accelerate launch -m eomt predict …",
    )
    p.add_argument("images", nargs="+", help="image files, folders (searched recursively), globs")
    p.add_argument("--model", required=True, help="local folder or hub name")
    p.add_argument("--output", required=True, type=Path, help="folder for the results; run again to resume")
    p.add_argument("--task", choices=TASKS, help="default: the model's")
    p.add_argument("--batch-size", type=int, default=1, metavar="N", help="images per batch (default 1)")
    add_device_and_dtype(p)
    p.add_argument(
        "--compile", action="store_true", help="compile the model with torch.compile: slow to start, then faster"
    )
    p.add_argument(
        "--threshold",
        type=float,
        help="panoptic: class probability that a query needs (default 0.8). instance: score from which an instance is "
        "drawn (default 0.5); instances.json always holds the best 100",
    )
    p.add_argument(
        "--confidence", action="store_true", help="semantic: also write a confidence map and a picture of it"
    )
    p.add_argument(
        "--label-space",
        help="write the category ids of this data set (coco_panoptic, cityscapes_semantic, …; default: those saved "
        "with the model). Image ids are the numbers in file names, otherwise the names",
    )
    p.add_argument(
        "--tile", type=int, metavar="SIDE",
        help="panoptic, instance: cut images larger than this into tiles of SIDE pixels (the model's input size keeps "
        "every pixel), segment them and the whole image, join the segments; --batch-size counts tiles. Semantic "
        "models cut windows of their own",
    )  # fmt: skip
    p.add_argument(
        "--overlap", type=float, metavar="SHARE",
        help=f"share of a tile that its neighbor covers too, 0 to 0.5 (default {OVERLAP})",
    )  # fmt: skip
    add_token_merging(p)
    p.add_argument("--no-overlays", action="store_true", help="write machine-readable results only")
    p.add_argument(
        "--as-dataset", type=Path, metavar="FOLDER",
        help="also write the predictions as a data set for eomt train --data: pseudo-labels",
    )  # fmt: skip
    p.add_argument(
        "--least-score", type=float, metavar="P",
        help="with --as-dataset: lowest score, or semantic confidence, at which a prediction becomes a label; others "
        f"are ignored (default {LEAST_SCORE})",
    )  # fmt: skip
    p.add_argument(
        "--max-pixels", type=int, default=MAX_PIXELS, metavar="N",
        help=f"refuse larger images; they need about 12 bytes per pixel (default {MAX_PIXELS:,})",
    )  # fmt: skip
    p.add_argument("--workers", type=int, default=1, metavar="N", help="data-loading processes (default 1)")
    return p


def read(argv: list[str]) -> argparse.Namespace:
    args = parser().parse_args(argv)
    require_at_least(args, 1, "batch_size", "max_pixels")
    require_at_least(args, 0, "workers")
    if args.threshold is not None and not 0 <= args.threshold <= 1:
        raise ValueError(f"--threshold {args.threshold}: give a probability from 0 to 1")
    if args.threshold is not None and args.task == "semantic":
        raise ValueError(f"--threshold {args.threshold} is for panoptic and instance segmentation, not --task semantic")
    if args.least_score is not None and not args.as_dataset:
        raise ValueError(f"--least-score {args.least_score} needs --as-dataset")
    args.least_score = LEAST_SCORE if args.least_score is None else args.least_score
    if not 0 < args.least_score <= 1:
        raise ValueError(f"--least-score {args.least_score}: give a probability from 0 to 1")
    if args.tile is not None and args.tile < 1:
        raise ValueError(f"--tile {args.tile}: give at least a patch of the model")
    if args.overlap is not None and args.tile is None:
        raise ValueError(f"--overlap {args.overlap} needs --tile")
    args.overlap = OVERLAP if args.overlap is None else args.overlap
    require_merging(args, args.token_merging is not None)
    if args.output.exists() and not args.output.is_dir():
        raise ValueError(f"--output {args.output} is a file; give a folder")
    return args


def run(args: argparse.Namespace) -> int:
    """The exit code: 0, or 1 if some images could not be segmented."""
    from ..predict import predict
    from ..training.files import require_free

    if args.as_dataset:
        require_free(args.as_dataset, force=False)
    return predict(args)
