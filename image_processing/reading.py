"""Image files → batches of model inputs, in worker processes; files that cannot be read are reported, not raised.

Legend: `V` model inputs, more than images where windows are cut; `S_h`, `S_w` their size.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch.utils.data import Dataset

from .images import read_image


class ImageInputs(Dataset):
    """(name, file) pairs → {"name", "file", "picture", "pixel_values" (v, 3, S_h, S_w), "patch_offsets"}, or
    {"failure": (file, reason)}."""

    def __init__(self, items: Sequence[tuple[str, Path]], processor):
        self.items, self.processor = list(items), processor

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict:
        name, file = self.items[index]
        try:
            picture = read_image(file)
            inputs = self.processor(picture, return_tensors="pt")
        except (ValueError, OSError) as error:
            return {"failure": (str(file), str(error))}
        return {"name": name, "file": file, "picture": picture, **inputs}


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
