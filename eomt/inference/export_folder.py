"""What `eomt export` does: load, export, check, score, and write the folder in one piece."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..image_processing import read_image
from ..image_processing.geometry import input_size_of
from ..training.files import atomic
from .exported import ExportedEoMT
from .exporting import (
    INT8_PACKAGES,
    PACKAGES,
    PRECISIONS,
    TOLERANCE,
    Difference,
    compare,
    export,
    exportable,
    synthetic_photo,
)
from .image_files import find_images

MAX_DROP = 1.0
"""Points of the metric that an exported file may lose."""
Score = Callable[[object], tuple[str, float]]
"""A model → the metric's name, and its value in points."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """As `eomt export --help` has them."""

    formats: tuple[str, ...] = ("onnx",)
    precision: str = "fp32"
    calibrate: list[str] | None = None
    calibration_images: int = 100
    max_drop: float = MAX_DROP
    image: Path | None = None
    dynamic_size: bool = False


def export_folder(
    model, processor, output: Path, options: ExportOptions, score: Score | None = None, force: bool = False
) -> None:
    """Export a model to the folder `output`; nothing is left there unless every file passed its check.

    Args:
        score: gives the task's metric of a model, to compare the exported files' with.

    Raises:
        ValueError: when a file differs from the model, or loses too much of the metric.
    """
    pixels, source = _check_image(options, processor)
    if model.attn_mask_probs.any():
        print(f"masked attention was on {model.attn_mask_probs.tolist()}; it is exported off, as the paper infers")
    size = input_size_of(processor.size, processor.do_split_image)
    calibration = _calibration(options, processor)
    wrapped = exportable(model)
    before = score(model) if score else None
    with atomic(output, folder=True, force=force) as folder:
        model.config.save_pretrained(folder)
        processor.save_pretrained(folder)
        for kind in options.formats:
            file = export(wrapped, kind, folder, size, options.precision, calibration, options.dynamic_size)
            exported = ExportedEoMT.from_pretrained(folder, engine=kind)
            print(_describe(file, size, options, source, _require_close(file, options, exported, wrapped, pixels)))
            if options.precision == "bf16" != exported.engine.dtype:
                print(f"note: this CPU has no bf16, so {file.name} was checked in {exported.engine.dtype}")
            if score:
                _require_score(file, before, score(exported), options.max_drop)
    print(f"done: {output}")


def require_options(options: ExportOptions) -> None:
    """`ValueError` when a package is missing or options contradict each other."""
    int8 = options.precision == "int8"
    for kind in options.formats:
        if options.precision not in PRECISIONS[kind]:
            raise ValueError(
                f"--format {kind} has no --precision {options.precision}; choose from {', '.join(PRECISIONS[kind])}"
            )
        packages = PACKAGES[kind] + (INT8_PACKAGES[kind] if int8 else ())
        missing = [name for name in packages if importlib.util.find_spec(name) is None]
        if missing:
            raise ValueError(f"--format {kind} needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    if int8 and not options.calibrate:
        raise ValueError("--precision int8 needs images that are like those to come: --calibrate IMAGES")
    if options.calibrate and not int8:
        raise ValueError(f"--calibrate has no effect with --precision {options.precision}")
    if not options.max_drop >= 0:
        raise ValueError(f"--max-drop is {options.max_drop}; give 0 points or more")
    if options.calibration_images < 1:
        raise ValueError(f"--calibration-images is {options.calibration_images}; give 1 or more")


def _check_image(options: ExportOptions, processor) -> tuple[torch.Tensor, str]:
    """The image to check with as model inputs (B, 3, H, W), and what to call it."""
    picture = read_image(options.image) if options.image else synthetic_photo()
    pixels = processor(picture, return_tensors="pt")["pixel_values"]
    return pixels, str(options.image) if options.image else "a synthetic image"


def _calibration(options: ExportOptions, processor) -> list[np.ndarray]:
    """Inputs (1, 3, H, W) of the images to calibrate on, windows one by one."""
    if not options.calibrate:
        return []
    files = list(find_images(options.calibrate).values())
    inputs, step = [], max(1, len(files) // options.calibration_images)
    for file in files[::step][: options.calibration_images]:
        pixels = processor(read_image(file), return_tensors="pt")["pixel_values"]
        inputs += list(pixels.split(1))
    return [pixels.numpy() for pixels in inputs]


def _require_close(file: Path, options: ExportOptions, exported, model, pixels) -> Difference:
    gap = compare(exported, model, pixels)
    if options.precision == "fp32" and gap.relative > TOLERANCE:
        raise ValueError(
            f"{file.name} differs from the model by {gap.logits:.2g} in a logit ({gap.relative:.1g} of the largest; "
            f"{TOLERANCE:g} is allowed); nothing was written"
        )
    return gap


def _describe(file: Path, size, options: ExportOptions, source: str, gap: Difference) -> str:
    beside = (file.with_suffix(".bin"), file.with_name(f"{file.name}.data"))  # weights: OpenVINO's, a large ONNX file's
    megabytes = sum(part.stat().st_size for part in (file, *beside) if part.exists()) / 1e6
    sides = "any size" if options.dynamic_size else f"{size[0]} × {size[1]} pixels"
    return (
        f"{file.name}: {options.precision}, {megabytes:.1f} MB, {sides}; on {source} logits differ by at most "
        f"{gap.logits:.1g}, {100 * gap.pixels:.4f} % of mask pixels change sides, {100 * gap.classes:.1f} % of queries "
        "their class"
    )


def _require_score(file: Path, before: tuple[str, float], after: tuple[str, float], max_drop: float) -> None:
    name, points = after
    drop = before[1] - points
    print(f"{file.name}: {name} {points:.2f}, the model {before[1]:.2f}")
    if drop > max_drop:
        raise ValueError(
            f"{file.name} loses {drop:.2f} points of {name} (--max-drop {max_drop:g}); calibrate on more images that "
            "are like those of the data, or export fp32; nothing was written"
        )
