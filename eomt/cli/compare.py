"""`eomt compare`: training runs side by side."""

import argparse
from pathlib import Path

from .options import require_picture


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="eomt compare",
        description="Training runs side by side, best first: metric, steps, time, the options that differ; and a "
        "picture of their curves. Folders without a run are skipped.",
    )
    p.add_argument("runs", nargs="+", metavar="RUN", help="folders that eomt train wrote, finished or not: runs/*")
    p.add_argument("--plot", type=Path, metavar="FILE", help="picture of the curves (png, pdf, svg)")
    p.add_argument("--force", action="store_true", help="replace an existing picture")
    return p


def read(argv: list[str]) -> argparse.Namespace:
    args = parser().parse_args(argv)
    require_picture(args.plot)
    return args


def run(args: argparse.Namespace) -> int:
    from ..benchmarking.runs import find_runs, plot_runs, runs_table
    from ..inference.writing import atomic, require_free

    if args.plot:
        require_free(args.plot, args.force)
    runs = find_runs(args.runs)
    print(runs_table(runs))
    if args.plot:
        with atomic(args.plot, force=args.force) as part:
            plot_runs(runs, part)
        print(f"curves: {args.plot}")
    return 0
