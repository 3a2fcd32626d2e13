"""`eomt export`: a model as a file for an engine, checked against the model before it says done."""

import argparse
from pathlib import Path

from .options import add_ignore_ids

FORMATS = ("openvino", "onnx")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="eomt export",
        description="Write a model for an inference engine: openvino_model.xml (OpenVINO) or model.onnx (ONNX Runtime) "
        "with config.json and preprocessor_config.json beside it. Any batch size, masked "
        "attention off. Each file is run on an image and compared with the model.",
    )
    p.add_argument("model", help="local directory or name on the hub")
    p.add_argument("output", type=Path, help="folder to write")
    p.add_argument("--format", nargs="+", choices=FORMATS, default=["onnx"], help="default: onnx")
    p.add_argument(
        "--precision", choices=("fp32", "bf16", "fp16", "int8"), default="fp32",
        help="openvino: fp32, bf16, int8; onnx: fp32, fp16, int8(default: fp32)",
    )  # fmt: skip
    p.add_argument("--calibrate", nargs="+", metavar="IMAGES", help="photos or folders to calibrate int8 on")
    p.add_argument("--calibration-images", type=int, default=100, metavar="N", help="use at most N of them (100)")
    p.add_argument("--data", metavar="PATH", help="data set to score the model and the files on")
    p.add_argument("--split", help="split of --data (default: val)")
    add_ignore_ids(p)
    p.add_argument(
        "--max-drop", type=float, metavar="POINTS",
        help="fail if a file loses more than this of PQ, AP or mIoU on --data (default: 1)",
    )  # fmt: skip
    p.add_argument("--image", type=Path, help="photo to check with (default: a synthetic one)")
    p.add_argument(
        "--image-size", nargs="+", metavar="PIXELS",
        help="side, or height and width, of the inputs (default: the image processor's)",
    )  # fmt: skip
    p.add_argument(
        "--dynamic-size", action="store_true",
        help="any image size: sides of 32 to 4096 pixels, multiples of the patch (DINOv3 models)",
    )  # fmt: skip
    p.add_argument("--force", action="store_true", help="replace the output folder")
    return p


def read(argv: list[str]) -> argparse.Namespace:
    args = parser().parse_args(argv)
    for option in ("split", "ignore_ids", "max_drop"):
        if getattr(args, option) not in (None, []) and not args.data:
            raise ValueError(f"--{option.replace('_', '-')} is for --data, which is missing")
    return args


def run(args: argparse.Namespace) -> int:
    from ..export import export

    export(args)
    return 0
