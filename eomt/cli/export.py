"""`eomt export`: a model as a torch.export program and an ONNX file, both checked against the model."""

import argparse
from pathlib import Path

KINDS = ("onnx", "pt2")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="eomt export",
        description="Export a model for use without this package: model.onnx (onnxruntime) and model.pt2 "
        "(torch.export), with config.json (labels) and preprocessor_config.json. The batch size is free, the image "
        "size fixed, masked attention off. Each file is run and compared with the model.",
    )
    p.add_argument("model", help="local folder or hub name")
    p.add_argument("output", type=Path, help="folder to create")
    p.add_argument("--format", nargs="+", choices=KINDS, default=list(KINDS), help="default: both")
    p.add_argument("--image", type=Path, help="image for the comparison (default: a synthetic one)")
    p.add_argument(
        "--image-size", nargs="+", metavar="PIXELS",
        help="side, or height and width, of the input (default: the image processor's)",
    )  # fmt: skip
    p.add_argument("--force", action="store_true", help="replace the output folder")
    return p


def main(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    from eomt.export import export

    export(args)
    return 0
