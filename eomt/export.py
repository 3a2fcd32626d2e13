"""EoMT as a torch.export program or an ONNX file: images (B, 3, H, W) → class and mask logits, any B, masking off.

B images · Q queries · C labels · H, W pixels
"""

import importlib.util
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoImageProcessor

from eomt import EoMTForUniversalSegmentation
from eomt.configuration.validation import parse_size
from eomt.image_processing import read_image
from eomt.image_processing.geometry import input_size_of
from eomt.inference.loading import load_model, require_model
from eomt.inference.writing import atomic, require_free, require_writable

INPUT = "pixel_values"  # (B, 3, H, W), normalized
OUTPUTS = ("class_queries_logits", "masks_queries_logits")  # (B, Q, C + 1), (B, Q, H/4, W/4)
FILES = {"pt2": "model.pt2", "onnx": "model.onnx"}
LARGEST_ONNX = 1_900_000_000  # bytes; a protobuf ends at 2 GiB, larger weights go beside it
TOLERANCE = 1e-4  # of the largest logit: fp32 sums in another order


def export(args) -> None:
    """What `eomt export` does; `args` as the command's parser gives them."""
    require_free(args.output, args.force)
    require_writable(args.output.parent)
    if "onnx" in args.format:
        _require("onnxscript", "onnxruntime")
    model, processor = _load(args)
    if not isinstance(model, EoMTForUniversalSegmentation):
        raise ValueError(f"{args.model} is a {type(model).__name__}; only EoMT models can be exported")
    pixels, shown = _pixels(args, processor)
    if model.attn_mask_probs.any():
        print(f"masked attention was on ({model.attn_mask_probs.tolist()}); the export has it off, as in the paper")
    size = input_size_of(processor.size, processor.do_split_image)
    wrapped = exportable(model)
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


def _require(*packages: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"ONNX needs {' and '.join(missing)}: pip install {' '.join(missing)}, or --format pt2")


def _load(args):
    """Model and image processor, both at the size asked for."""
    require_model(args.model)
    processor = AutoImageProcessor.from_pretrained(args.model)
    changes = {}
    if args.image_size:
        changes["image_size"] = parse_size(*args.image_size)
        processor = type(processor).from_pretrained(args.model, size=changes["image_size"])
    return load_model(args.model, dtype="float32", **changes), processor


def _pixels(args, processor):
    """The image to check with as model inputs (B, 3, H, W), and what to call it."""
    picture = read_image(args.image) if args.image else synthetic_photo()
    return processor(picture, return_tensors="pt")["pixel_values"], str(
        args.image
    ) if args.image else "a synthetic image"


class Exportable(nn.Module):
    """EoMT without what an exported program cannot return: tensors in, tensors out."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        output = self.model(pixel_values)
        return output.class_queries_logits, output.masks_queries_logits


def exportable(model: nn.Module) -> Exportable:
    """`model`, in evaluation mode and with its masking turned off, ready for export."""
    model.eval()
    model.set_attn_mask_probs([0.0] * model.config.num_blocks)
    return Exportable(model).eval()


def write(model: Exportable, kind: str, size: tuple[int, int], path: Path) -> None:
    """Export to `path`; `kind` is "pt2" (torch.export) or "onnx"; `size` is (H, W), fixed in the file."""
    example = torch.zeros(2, model.model.config.num_channels, *size)
    batch = {INPUT: {0: torch.export.Dim("batch", min=1)}}
    with torch.no_grad():
        if kind == "pt2":
            written = io.BytesIO()  # torch's own writer ends the process where the disk is full
            torch.export.save(torch.export.export(model, (example,), dynamic_shapes=batch), written)
            path.write_bytes(written.getbuffer())
            return
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            dynamic_shapes=batch,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            verbose=False,
        )
    weights = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
    program.save(path, external_data=weights > LARGEST_ONNX)


def run(kind: str, path: Path, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The exported file's outputs for (B, 3, H, W)."""
    if kind == "pt2":
        with torch.no_grad():
            return torch.export.load(path).module()(pixels)
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return tuple(torch.from_numpy(output) for output in session.run(list(OUTPUTS), {INPUT: pixels.numpy()}))


@dataclass(frozen=True)
class Difference:
    """How far an exported file is from the model, over several batch sizes."""

    logits: float
    """Largest difference of a logit."""
    relative: float
    """The same, divided by the largest logit of its kind."""
    pixels: float
    """Share of mask pixels on the other side of 0."""


def compare(kind: str, path: Path, model: nn.Module, pixels: Tensor) -> Difference:
    """Run file and model on (B, 3, H, W), and on one image less and one more: the batch must be free."""
    batches = [pixels, torch.cat([pixels, pixels[:1].flip(-1)]), pixels[:1]]
    worst = Difference(0.0, 0.0, 0.0)
    for batch in batches:
        with torch.no_grad():
            expected = model(batch)
        found = run(kind, path, batch)
        for ours, theirs in zip(expected, found):
            if ours.shape != theirs.shape or not theirs.isfinite().all():
                raise ValueError(f"{path.name} gives {tuple(theirs.shape)} for {tuple(ours.shape)}, or no numbers")
        gaps = [(ours - theirs).abs().max().item() for ours, theirs in zip(expected, found)]
        relative = [gap / ours.abs().max().clamp(min=1).item() for gap, ours in zip(gaps, expected)]
        flipped = ((expected[1] > 0) != (found[1] > 0)).float().mean().item()
        worst = Difference(max(worst.logits, *gaps), max(worst.relative, *relative), max(worst.pixels, flipped))
    return worst


def synthetic_photo(height: int = 480, width: int = 640) -> Image.Image:
    """A picture with areas, edges and texture, always the same one."""
    random = np.random.default_rng(0)
    blobs = Image.fromarray(random.integers(0, 256, (6, 8, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    picture = np.asarray(blobs).astype(np.int16)
    for _ in range(6):
        top, left = random.integers(0, height // 2), random.integers(0, width // 2)
        picture[top : top + height // 3, left : left + width // 4] = random.integers(0, 256, 3)
    picture += random.integers(-12, 13, picture.shape)
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))
