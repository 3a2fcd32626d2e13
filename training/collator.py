"""The collator: stacks and normalizes pixels, and lists masks and classes.

B images · n_i segments of image i · H, W input size
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD


@dataclass
class EoMTDataCollator:
    """Makes a batch {"pixel_values" float32 (B, 3, H, W), "mask_labels": list of (n_i, H, W), "class_labels": list of
    (n_i,), "file_name"?} from a list of samples.

    Samples come from `TrainTransform` or `EoMTImageProcessor`: single images, with or without a batch dimension, all
    windows of an image, or batches. uint8 pixels are multiplied by `rescale_factor` and normalized with `image_mean`
    and `image_std` (one number, or one for each channel), unless `do_rescale` or `do_normalize` is off. Float pixels
    are not changed. Works in the stock Trainer with `remove_unused_columns=False`. `keep_file_names=True` keeps the
    names, which `EoMTTrainer` reports.
    """

    image_mean: Sequence[float] | float = tuple(IMAGENET_DEFAULT_MEAN)
    image_std: Sequence[float] | float = tuple(IMAGENET_DEFAULT_STD)
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    keep_file_names: bool = False

    @classmethod
    def from_processor(cls, processor, **options) -> "EoMTDataCollator":
        """A collator with the normalization of an image processor."""
        fields = ("image_mean", "image_std", "do_rescale", "rescale_factor", "do_normalize")
        settings = {name: value for name in fields if (value := getattr(processor, name, None)) is not None}
        return cls(**settings, **options)

    def __call__(self, samples: list[dict]) -> dict:
        pixels, masks, labels, names = [], [], [], []
        for sample in samples:
            pixels += _entries(sample["pixel_values"], 3)
            masks += _entries(sample.get("mask_labels"), 3)
            labels += _entries(sample.get("class_labels"), 1)
            names.append(sample.get("file_name"))
        batch = {"pixel_values": self._normalized(torch.stack(pixels))}  # [B, 3, H, W]
        if "encoder_levels" in samples[0]:  # training/features.py
            batch["encoder_levels"] = torch.stack([sample["encoder_levels"] for sample in samples])
        if masks or labels:
            if not len(masks) == len(labels) == len(pixels):
                raise ValueError(f"{len(pixels)} images with {len(masks)} mask_labels and {len(labels)} class_labels")
            batch |= {"mask_labels": masks, "class_labels": [label.long() for label in labels]}
        if self.keep_file_names and any(names):
            batch["file_name"] = names
        return batch

    def _normalized(self, pixels: torch.Tensor) -> torch.Tensor:
        if pixels.dtype != torch.uint8:
            return pixels
        pixels = pixels.float()
        if self.do_rescale:
            pixels = pixels / 255 if self.rescale_factor == 1 / 255 else pixels * self.rescale_factor
        if self.do_normalize:
            pixels = (pixels - _per_channel(self.image_mean)) / _per_channel(self.image_std)
        return pixels


def _per_channel(value: Sequence[float] | float) -> torch.Tensor:
    """One number, or one for each channel, as a tensor (1, 1 or 3, 1, 1)."""
    return torch.as_tensor(value, dtype=torch.float32).reshape(1, -1, 1, 1)


def _entries(value, ndim: int) -> list[torch.Tensor]:
    """A list with one tensor of `ndim` dimensions per image, from a tensor, a list or a batch."""
    if value is None:
        return []
    if isinstance(value, (list, tuple)) and value and torch.as_tensor(value[0]).ndim == ndim:
        return [torch.as_tensor(v) for v in value]
    value = torch.as_tensor(value)
    return list(value) if value.ndim == ndim + 1 else [value]
