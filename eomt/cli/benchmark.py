"""`eomt benchmark`: compare models by parameters, GFLOPs, latency, throughput and memory."""

import argparse
from pathlib import Path

from ..configuration import TASKS
from ..configuration.sizes import parse_size
from .options import (
    add_device_and_dtype,
    add_token_merging,
    require_at_least,
    require_merging,
)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="eomt benchmark",
        description="Compare models of universal segmentation (EoMT, Mask2Former, OneFormer, …) on one device, by the "
        "paper's protocol (Section 4.1): batch 1, warm-up, median of synchronized runs. GFLOPs are counted as the "
        "paper counts them: a multiply-add is one.",
    )
    p.add_argument(
        "--model", required=True, nargs="+", metavar="MODEL",
        help="local folders, also of eomt export (which run on their engine, in their own precision); hub names; or "
        "names of backbones (vit_large_patch14_reg4_dinov2), which become an EoMT with random weights",
    )  # fmt: skip
    p.add_argument(
        "--image-size", nargs="+", metavar="SIZE",
        help="sides or HEIGHTxWIDTH; every model is run at each (default: its own, else 640)",
    )  # fmt: skip
    p.add_argument("--task", choices=TASKS, default=TASKS[0], help="task of backbones (default panoptic)")
    p.add_argument("--num-labels", type=int, metavar="C", help="classes of backbones (default 133, 80 or 150 by task)")
    p.add_argument("--num-queries", type=int, metavar="Q", help="queries of backbones (default: the paper's)")
    p.add_argument("--num-blocks", type=int, metavar="L2", help="L2 of backbones (default: the paper's)")
    p.add_argument(
        "--step", type=int, nargs="+", choices=range(6), metavar="STEP",
        help="for backbones: steps of the paper's Table 1, 0 (ViT-Adapter + Mask2Former) to 5 (EoMT, the default)",
    )  # fmt: skip
    p.add_argument(
        "--masked", action=argparse.BooleanOptionalAction,
        help="masked attention at inference (default: off, whatever was saved; on for --step 0 to 4; saved steps 0 "
        "to 3 as trained)",
    )  # fmt: skip
    p.add_argument(
        "--photo", metavar="HEIGHTxWIDTH",
        help="semantic: count and time all windows of an image of this size (Cityscapes: 1024x2048)",
    )  # fmt: skip
    p.add_argument(
        "--images", nargs="+", metavar="PATH",
        help="photos to count and time instead of noise; with merged tokens, by the tokens that are left",
    )  # fmt: skip
    add_token_merging(p)
    p.add_argument(
        "--count-only", action="store_true", help="only count parameters and GFLOPs, without allocating weights"
    )
    p.add_argument("--batch-size", type=int, default=1, metavar="N", help="batch size of the throughput (default 1)")
    add_device_and_dtype(p)
    p.add_argument(
        "--autocast", action="store_true", help="mixed precision, as in the paper: float32 weights, products in --dtype"
    )
    p.add_argument("--compile", action="store_true", help="use torch.compile, as in the paper")
    p.add_argument("--warm-up", type=int, default=5, metavar="N", help="untimed runs first (default 5)")
    p.add_argument("--repeats", type=int, default=20, metavar="N", help="timed runs (default 20)")
    p.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file")
    p.add_argument("--force", action="store_true", help="replace an existing file of --json")
    return p


def read(argv: list[str]) -> argparse.Namespace:
    options = parser()
    args = options.parse_args(argv)
    require_at_least(args, 1, "batch_size", "repeats")
    require_at_least(args, 0, "warm_up")
    if args.token_merging is not None and not args.images:
        raise ValueError("--token-merging needs --images: how many tokens merge depends on the picture")
    if args.images and args.photo:
        raise ValueError("--images have sizes of their own; leave out --photo")
    args.photo = args.photo and parse_size(args.photo, option="--photo")
    require_merging(args, args.token_merging is not None)
    if args.autocast and args.dtype == "float32":
        raise ValueError("--autocast needs --dtype bfloat16 or float16")
    return args


def run(args: argparse.Namespace) -> int:
    from ..benchmarking.compare import compare

    return compare(args)
