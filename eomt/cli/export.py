"""`eomt export`: a model as a torch.export program and an ONNX file, checked against the model before it says done."""

import argparse
from pathlib import Path

KINDS = ("onnx", "pt2")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="eomt export",
        description="Write a model for use without this package: model.onnx (onnxruntime) and model.pt2 "
        "(torch.export), config.json (labels) and preprocessor_config.json beside them. Any batch size, one image "
        "size, masked attention off. Each file is run on an image and compared with the model.",
    )
    p.add_argument("model", help="local directory or name on the hub")
    p.add_argument("output", type=Path, help="folder to make")
    p.add_argument("--format", nargs="+", choices=KINDS, default=list(KINDS), help="default: both")
    p.add_argument("--image", type=Path, help="photo to check with (default: a made one)")
    p.add_argument(
        "--image-size", type=int, nargs="+", metavar="PIXELS",
        help="side, or height and width, of the inputs (default: the image processor's)",
    )  # fmt: skip
    p.add_argument("--int8", action="store_true", help="encoder weights in int8 (torchao), for smaller files")
    p.add_argument("--force", action="store_true", help="replace the output folder")
    return p


def main(argv: list[str]) -> int:
    args = parser().parse_args(argv)
    from eomt.cli.checks import require_sides, require_writable
    from eomt.inference.writing import require_free

    require_free(args.output, args.force)
    require_sides(args.image_size)
    require_writable(args.output.parent)
    if "onnx" in args.format:
        _require("onnxscript", "onnxruntime")
    import eomt
    from eomt.export import FILES, TOLERANCE, compare, exportable, quantize, write
    from eomt.image_processing.geometry import input_size_of
    from eomt.inference.writing import atomic

    model, processor = _load(args)
    if not isinstance(model, eomt.EoMTForUniversalSegmentation):
        raise ValueError(f"{args.model} is a {type(model).__name__}; only EoMT can be exported")
    pixels, shown = _pixels(args, processor)
    if model.attn_mask_probs.any():
        print(f"masked attention was on {model.attn_mask_probs.tolist()}; it is exported off, as the paper infers")
    size = input_size_of(processor.size, processor.do_split_image)
    wrapped = exportable(model)
    full = _outputs(wrapped, pixels)
    if args.int8:
        quantize(wrapped)
        print(f"int8: {_agreement(full, _outputs(wrapped, pixels))}")
    with atomic(args.output, folder=True, force=args.force) as folder:
        for kind in dict.fromkeys(args.format):
            file = folder / FILES[kind]
            write(wrapped, kind, size, file)
            gap = compare(kind, file, wrapped, pixels)
            if gap.relative > TOLERANCE:
                raise ValueError(
                    f"{file.name} differs from the model by {gap.logits:.2g} in a logit ({gap.relative:.1g} of the "
                    f"largest; {TOLERANCE:g} is allowed) on {shown}; nothing was written"
                )
            megabytes = sum(part.stat().st_size for part in folder.glob(f"{file.name}*")) / 1e6
            print(
                f"{file.name}: {megabytes:.1f} MB, {size[0]} × {size[1]} pixels; on {shown} logits differ by at most "
                f"{gap.logits:.1g}, {100 * gap.pixels:.4f} % of mask pixels change sides"
            )
        model.config.save_pretrained(folder)
        processor.save_pretrained(folder)
    print(f"done: {args.output}")
    return 0


def _require(*packages: str) -> None:
    import importlib.util

    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"ONNX needs {' and '.join(missing)}: pip install {' '.join(missing)}, or --format pt2")


def _load(args):
    """Model and image processor, both at the size asked for."""
    from transformers import AutoImageProcessor

    from eomt.cli.checks import load_model, require_model

    require_model(args.model)
    processor = AutoImageProcessor.from_pretrained(args.model)
    changes = {}
    if args.image_size:
        height, width = args.image_size * (3 - len(args.image_size))
        changes["image_size"] = height if height == width else (height, width)
        processor = type(processor).from_pretrained(args.model, size={"height": height, "width": width})
    return load_model(args.model, dtype="float32", **changes), processor


def _pixels(args, processor):
    """The image to check with as model inputs (B, 3, H, W), and what to call it."""
    from eomt.export import synthetic_photo
    from eomt.image_processing import read_image

    picture = read_image(args.image) if args.image else synthetic_photo()
    return processor(picture, return_tensors="pt")["pixel_values"], str(args.image) if args.image else "a made image"


def _outputs(model, pixels):
    import torch

    with torch.no_grad():
        return model(pixels)


def _agreement(full, quantised) -> str:
    """What quantisation changed: queries whose class, and mask pixels whose side, stay the same."""
    classes = (full[0].argmax(-1) == quantised[0].argmax(-1)).float().mean().item()
    pixels = ((full[1] > 0) == (quantised[1] > 0)).float().mean().item()
    return f"{100 * classes:.1f} % of queries keep their class, {100 * pixels:.2f} % of mask pixels their side"
