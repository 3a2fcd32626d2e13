"""`eomt evaluate`: PQ, AP or mIoU of a model, or of predictions that any tool wrote."""

import argparse

from ..configuration import TASKS
from .options import (
    add_device_and_dtype,
    add_ignore_ids,
    add_token_merging,
    data_workers,
    require_at_least,
    require_merging,
)

EPILOG = """examples:
  a model on COCO           eomt evaluate runs/mine --data COCO --batch-size 4
  its pictures and files    eomt evaluate runs/mine --data DATA --output report --worst 20 --save-predictions files
  another tool's results    eomt evaluate --predictions results/ --data COCO --task panoptic
  four GPUs                 torchrun --nproc_per_node 4 --no-python eomt evaluate runs/mine --data COCO
Formats of data: eomt train --help. Formats of predictions: COCO panoptic png + json, COCO results json with RLE, label
png in the data set's ids (Cityscapes label ids, ADE20K 1 … 150). Percent on the terminal, fractions in files."""

MODEL_OPTIONS = ("save_predictions", "token_merging", "merging_layers", "masked", "dtype", "batch_size")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        "eomt evaluate", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("model", nargs="?", help="local folder or hub name")
    p.add_argument("--predictions", metavar="PATH", help="evaluate these files instead of a model")
    p.add_argument("--data", required=True, metavar="PATH", help="folder or zip of the data set")
    p.add_argument(
        "--dataset",
        default="auto",
        help="coco, ade20k, cityscapes, yolo, folder (default: detected from the files)",
    )
    p.add_argument("--task", choices=TASKS, help="required with --predictions (default: the model's)")
    p.add_argument("--split", default="val", choices=["train", "val", "test"])
    add_ignore_ids(p)
    p.add_argument(
        "--keep-empty",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="include images without annotations, as the official servers do (default); the authors leave them out",
    )
    p.add_argument("--batch-size", type=int, default=1, help="images per batch (default 1)")
    p.add_argument("--num-workers", type=int, default=data_workers(), help="data-loading processes")
    add_device_and_dtype(p)
    p.add_argument(
        "--masked", action="store_true", help="evaluate with masked attention, also before each masked block"
    )
    add_token_merging(p)
    p.add_argument(
        "--output", metavar="FOLDER", help="write metrics.json, per_class.csv and confusion.png to this folder"
    )
    p.add_argument(
        "--worst",
        type=int,
        default=0,
        metavar="N",
        help="with --output: also draw the N worst images beside their ground truth",
    )
    p.add_argument(
        "--save-predictions",
        metavar="FOLDER",
        help="write predictions in the formats of the official evaluation servers",
    )
    p.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return p


def read(argv: list[str]) -> argparse.Namespace:
    options = parser()
    args = options.parse_args(argv)
    if (args.model is None) == (args.predictions is None):
        raise ValueError("give either a model or --predictions")
    if args.predictions and not args.task:
        raise ValueError(f"--predictions needs --task: {', '.join(TASKS)}")
    for name in MODEL_OPTIONS if args.predictions else ():
        if getattr(args, name) != options.get_default(name):
            raise ValueError(f"{_option(name)} needs a model; --predictions reads files that exist already")
    require_at_least(args, 0, "worst")
    require_merging(args, args.token_merging is not None)
    if args.worst and not args.output:
        raise ValueError("--worst needs --output, the folder for its pictures")
    return args


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def run(args: argparse.Namespace) -> int:
    from ..evaluate import evaluate

    evaluate(args)
    return 0
