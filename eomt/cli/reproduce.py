"""`eomt reproduce`: a table of the paper beside what is counted, measured and trained here."""

import argparse
from pathlib import Path

from .options import require_at_least, require_picture

TABLES = (*"123456789BCDE", "figure-1")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="eomt reproduce",
        description="Print the rows of a table of the paper, and beside its figures what is found here: parameters and "
        "GFLOPs counted without weights; latency and memory with --measure (random weights); results of your runs with "
        "--run. Deviations from the printed counts are marked.",
    )
    p.add_argument("table", type=_as_listed, choices=TABLES, metavar="TABLE", help=f"{', '.join(TABLES)}")
    p.add_argument("--run", action="append", metavar="ROW=FOLDER", help="a run of eomt train or evaluate, for a row")
    p.add_argument("--measure", action="store_true", help="measure latency and memory of one image on this machine")
    p.add_argument("--device", help="device to measure on: cpu, cuda, mps (default cpu)")
    p.add_argument("--warm-up", type=int, default=2, metavar="N", help="untimed runs first (default 2)")
    p.add_argument("--repeats", type=int, default=5, metavar="N", help="timed runs, the median counts (default 5)")
    p.add_argument("--json", type=Path, metavar="FILE", help="write the rows to this file")
    p.add_argument("--plot", type=Path, metavar="FILE", help="figure-1: the picture (png, pdf, svg)")
    p.add_argument("--force", action="store_true", help="replace existing files of --json and --plot")
    return p


def _as_listed(table: str) -> str:
    """b → B, Figure-1 → figure-1."""
    return table.upper() if len(table) == 1 else table.lower()


def read(argv: list[str]) -> argparse.Namespace:
    args = parser().parse_args(argv)
    if args.plot and args.table != "figure-1":
        raise ValueError("--plot is for figure-1; tables have none")
    require_picture(args.plot)
    require_at_least(args, 1, "repeats")
    require_at_least(args, 0, "warm_up")
    return args


def run(args: argparse.Namespace) -> int:
    from ..benchmarking.reproduce import reproduce

    return reproduce(args)
