"""EoMT as a torch.export program or an ONNX file: images (B, 3, H, W) → class and mask logits, any B, masking off.

B images · Q queries · C labels · H, W pixels
"""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

INPUT = "pixel_values"  # (B, 3, H, W), normalised
OUTPUTS = ("class_queries_logits", "masks_queries_logits")  # (B, Q, C + 1), (B, Q, H/4, W/4)
FILES = {"pt2": "model.pt2", "onnx": "model.onnx"}
LARGEST_ONNX = 1_900_000_000  # bytes; a protobuf ends at 2 GiB, larger weights go beside it
TOLERANCE = 1e-4  # of the largest logit: fp32 sums in another order


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


def quantize(model: Exportable) -> None:
    """int8 weights of the encoder's linear layers, one scale a row, in place; activations stay float32 (torchao)."""
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError:
        raise ValueError("--int8 needs torchao: pip install torchao") from None

    def of_encoder(module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.Linear) and name.startswith("model.layers.")

    quantize_(model, Int8WeightOnlyConfig(), filter_fn=of_encoder)


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
    """A picture with areas, edges and texture, always the same; for when there is no photo at hand."""
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
