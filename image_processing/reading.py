"""Image files → batches of model inputs, in worker processes, and a batch's outputs → one image's; files that cannot
be read are reported, not raised.

Legend: `V` model inputs, more than images where windows are cut; `S_h`, `S_w` their size.
"""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import torch
from PIL import Image
from torch.utils.data import Dataset

from .images import frames_of, read_image

FAILS_ALONE = (ValueError, OSError, RuntimeError, MemoryError)
"""What one image may raise while the others go on: no picture, too large for memory, too long a name for its file, …"""


def failure(file: Path, error: Exception) -> tuple[str, str]:
    """→ (file, reason in one line)."""
    return str(file), (str(error).strip() or type(error).__name__).splitlines()[0]


def allow_pixels(count: int) -> None:
    """Let Pillow open pictures of so many pixels in this process; it warns of half of its limit."""
    Image.MAX_IMAGE_PIXELS = max(count, Image.MAX_IMAGE_PIXELS or 0)


class ImageInputs(Dataset):
    """(name, file) pairs → {"name", "file", "size" (height, width), "frames", "pixel_values" (v, 3, S_h, S_w),
    "patch_offsets"}, or {"failure": (file, reason)}. Pictures do not travel between processes: who wants one reads it
    again. Those of more than `max_pixels` are failures."""

    def __init__(self, items: Sequence[tuple[str, Path]], processor, max_pixels: int):
        self.items, self.processor, self.max_pixels = list(items), processor, max_pixels

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict:
        name, file = self.items[index]
        try:
            allow_pixels(self.max_pixels)
            picture = read_image(file, max_pixels=self.max_pixels)
            inputs = self.processor(picture, return_tensors="pt")
        except FAILS_ALONE as error:
            return {"failure": failure(file, error)}
        return {
            "name": name,
            "file": file,
            "size": (picture.height, picture.width),
            "frames": frames_of(file),
            **inputs,
        }


def collate(samples: list[dict]) -> dict:
    """→ {"images", "failures", "pixel_values" (V, 3, S_h, S_w) or `None`, "patch_offsets" [(image, start, end)]}."""
    images = [sample for sample in samples if "failure" not in sample]
    pixels = [sample.pop("pixel_values") for sample in images]
    offsets = [
        (i, int(start), int(end)) for i, sample in enumerate(images) for _, start, end in sample.pop("patch_offsets")
    ]
    return {
        "images": images,
        "failures": [sample["failure"] for sample in samples if "failure" in sample],
        "pixel_values": torch.cat(pixels) if pixels else None,
        "patch_offsets": offsets,
    }


def outputs_of(i: int, outputs, batch: dict) -> SimpleNamespace:
    """A batch's outputs → those of its image `i`: of one input, or of its windows."""
    offsets = batch["patch_offsets"]
    rows = [v for v, (image, *_) in enumerate(offsets) if image == i] if offsets else [i]
    part = slice(rows[0], rows[-1] + 1)
    return SimpleNamespace(
        masks_queries_logits=outputs.masks_queries_logits[part],
        class_queries_logits=outputs.class_queries_logits[part],
        patch_offsets=[(0, start, end) for _, start, end in offsets[part]] or None,
    )
