"""`eomt serve`: a page to try models on photos, and the same as an HTTP API."""

import argparse
import importlib.util

from .options import require_at_least


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="eomt serve",
        description="A page to try models: drop photos, see the segments, move the thresholds, compare two models, "
        "download the results. The same as an HTTP API: endpoint /segment. Needs pip install '.[app]' in the checkout.",
    )
    p.add_argument("models", nargs="+", metavar="MODEL", help="local folders, exported ones too, or hub names")
    p.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine only)")
    p.add_argument("--port", type=int, default=7860, metavar="N", help="default 7860")
    p.add_argument("--device", help="device of PyTorch models: cpu, cuda, cuda:1, mps (default: the best available)")
    p.add_argument("--max-upload", type=int, default=50, metavar="MB", help="largest file (default 50)")
    p.add_argument(
        "--max-pixels", type=int, default=50_000_000, metavar="N", help="refuse larger images (default 50,000,000)"
    )
    p.add_argument(
        "--requests", type=int, default=2, metavar="N", help="images segmented at once, others wait (default 2)"
    )
    return p


def read(argv: list[str]) -> argparse.Namespace:
    args = parser().parse_args(argv)
    require_at_least(args, 1, "port", "max_upload", "max_pixels", "requests")
    if args.port > 65535:
        raise ValueError(f"--port {args.port}: give at most 65535")
    if importlib.util.find_spec("gradio") is None:
        raise ValueError("the page needs Gradio: pip install '.[app]' in the checkout")
    return args


def run(args: argparse.Namespace) -> int:
    from ..app.limits import Limits
    from ..app.server import serve
    from ..inference.loading import usable_device

    if args.device:
        usable_device(args.device)
    limits = Limits(upload_megabytes=args.max_upload, max_pixels=args.max_pixels, requests=args.requests)
    serve(args.models, args.host, args.port, limits, args.device)
    return 0
