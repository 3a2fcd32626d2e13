"""Photos as inputs of a benchmark, for what depends on the picture: merged tokens, the number of windows."""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoImageProcessor

from ..image_processing import EoMTImageProcessor
from ..image_processing.reading import open_image
from ..inference.image_files import find_images
from .flops import count_flops


def photo_inputs(candidate, paths: Sequence[str], device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Image files and folders → each photo's model inputs (V, 3, H, W), by the model's own processor.

    Raises:
        ValueError: when there is no image, or the model is not an EoMT.
    """
    if not candidate.is_eomt:
        raise ValueError(f"--images: {candidate.name} is a {candidate.config.model_type!r}; photos are for EoMT only")
    if candidate.pretrained and Path(candidate.name, "preprocessor_config.json").is_file():
        processor = AutoImageProcessor.from_pretrained(candidate.name, size=candidate.image_size)
    else:
        processor = EoMTImageProcessor(task=candidate.config.task, size=candidate.image_size)
    files = find_images(list(paths))
    photos = [processor(open_image(file), return_tensors="pt")["pixel_values"] for file in files.values()]
    return [pixels.to(device, dtype) for pixels in photos]


def mean_flops(model: nn.Module, photos: Sequence[Tensor]) -> float:
    """Multiply-adds of one photo, all its windows together, on average: by the tokens that are really left."""
    return sum(count_flops(model, pixel_values=pixels) for pixels in photos) / len(photos)


def batches(photos: Sequence[Tensor], size: int):
    """Without end: the inputs of the next `size` photos, (V, 3, H, W)."""
    source = cycle(photos)
    while True:
        yield torch.cat([next(source) for _ in range(size)])
