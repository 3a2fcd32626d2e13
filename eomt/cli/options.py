"""Options and checks that several commands share."""

import os

DTYPES = ("float32", "bfloat16", "float16")


def add_device_and_dtype(parser) -> None:
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: the best available)")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="of weights and arithmetic (default float32)"
    )


def add_ignore_ids(parser) -> None:
    parser.add_argument(
        "--ignore-ids", type=int, nargs="+", default=[], metavar="ID", help="label png values that mean unlabeled"
    )


def add_token_merging(parser) -> None:
    """The arguments of `inference.loading.merge_tokens`."""
    parser.add_argument(
        "--token-merging", type=float, metavar="THRESHOLD",
        help="merge tokens whose cosine similarity reaches this (ALGM; the paper's Table 9): faster, not quite exact; "
        "the threshold depends on the model (default: off)",
    )  # fmt: skip
    parser.add_argument(
        "--merging-layers", type=int, nargs=2, metavar=("LOCAL", "GLOBAL"),
        help="blocks in which tokens merge, among those before the queries join (default 1 7)",
    )  # fmt: skip


def require_merging(args, merges: bool) -> None:
    """`ValueError` for --merging-layers where no tokens merge; otherwise its default."""
    if args.merging_layers and not merges:
        raise ValueError("--merging-layers needs --token-merging, the threshold")
    args.merging_layers = args.merging_layers or [1, 7]


def require_at_least(args, least: int, *names: str) -> None:
    """`ValueError` for the first of these options that is less."""
    for name in names:
        if getattr(args, name) < least:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(args, name)}: give at least {least}")


def data_workers() -> int:
    """Processes that read images: one for each core that this process may use, at most 4."""
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return min(4, len(usable))
