"""`eomt export`: a model as a file for an engine, checked against the model before it says done."""

import argparse
from pathlib import Path

FORMATS = ("openvino", "onnx", "pt2")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="eomt export",
        description="Write a model for an inference engine: openvino_model.xml (OpenVINO), model.onnx (ONNX Runtime) "
        "or model.pt2 (torch.export), with config.json and preprocessor_config.json beside it. Any batch size, masked "
        "attention off. Each file is run on an image and compared with the model.",
    )
    p.add_argument("model", help="local directory or name on the hub")
    p.add_argument("output", type=Path, help="folder to write")
    p.add_argument("--format", nargs="+", choices=FORMATS, default=["onnx", "pt2"], help="default: onnx pt2")
    p.add_argument(
        "--precision", choices=("fp32", "bf16", "fp16", "int8"), default="fp32",
        help="openvino: fp32, bf16, int8; onnx: fp32, fp16, int8; pt2: fp32 (default: fp32)",
    )  # fmt: skip
    p.add_argument("--calibrate", nargs="+", metavar="IMAGES", help="photos or folders to calibrate int8 on")
    p.add_argument("--calibration-images", type=int, default=100, metavar="N", help="use at most N of them (100)")
    p.add_argument("--data", metavar="PATH", help="data set to score the model and the files on")
    p.add_argument("--split", default="val", help="split of --data (default: val)")
    p.add_argument(
        "--max-drop", type=float, default=1.0, metavar="POINTS",
        help="fail if a file loses more than this of PQ, AP or mIoU on --data (default: 1)",
    )  # fmt: skip
    p.add_argument("--image", type=Path, help="photo to check with (default: a synthetic one)")
    p.add_argument(
        "--image-size", type=int, nargs="+", metavar="PIXELS",
        help="side, or height and width, of the inputs (default: the image processor's)",
    )  # fmt: skip
    p.add_argument("--dynamic-size", action="store_true", help="any image size (DINOv3 models)")
    p.add_argument("--force", action="store_true", help="replace the output folder")
    return p


def main(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    from eomt.cli.checks import load_model, require_model, require_sides, require_writable
    from eomt.writing import require_free

    require_sides(args.image_size)
    require_free(args.output, args.force)
    require_writable(args.output.parent)
    from transformers import AutoImageProcessor

    from eomt.inference.export_folder import ExportOptions, export_folder, require_options
    from eomt.modeling_eomt import EoMTPreTrainedModel

    options = ExportOptions(
        formats=tuple(dict.fromkeys(args.format)),
        precision=args.precision,
        calibrate=args.calibrate,
        calibration_images=args.calibration_images,
        max_drop=args.max_drop,
        image=args.image,
        dynamic_size=args.dynamic_size,
    )
    require_options(options)
    require_model(args.model)
    of_model, of_processor = {}, {}
    if args.image_size:
        height, width = args.image_size * (3 - len(args.image_size))
        of_model["image_size"] = height if height == width else (height, width)
        of_processor["size"] = {"height": height, "width": width}
    processor = AutoImageProcessor.from_pretrained(args.model, **of_processor)
    model = load_model(args.model, dtype="float32", **of_model)
    if not isinstance(model, EoMTPreTrainedModel):
        raise ValueError(f"{args.model} is a {type(model).__name__}; only EoMT can be exported")
    score = _score(args, processor) if args.data else None
    export_folder(model, processor, args.output, options, score, args.force)
    return 0


def _score(args, processor):
    """`model → (name, points)` of the task's metric on --data."""
    from eomt.configuration.labels import LabelSpace
    from eomt.training.data import EvaluationTransform, load_data
    from eomt.training.evaluation import MAIN, evaluate_model

    task = processor.task
    data, labels = load_data(args.data, task=task, split=args.split)
    data = data.with_transform(EvaluationTransform(labels, task=task))

    def score(model) -> tuple[str, float]:
        space = LabelSpace.from_config(model.config)
        result = evaluate_model(model, processor, data, task=task, label_space=space)
        return MAIN[task], 100 * result[MAIN[task]]

    return score
