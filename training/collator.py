"""The data collator: stacks and normalizes pixels, and lists masks and classes.

B images · C channels · n_i segments of image i · H, W input size
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD


@dataclass
class EoMTDataCollator:
    """Collates samples of `TrainTransform` or `EoMTImageProcessor` into a batch.

    A sample is one image with or without a batch dimension, all windows of an image, or a batch. Float pixels are not
    changed, unless the sample has "unnormalized": True, for 0 to 255 from more than 8 bits. Works in the stock Trainer
    with `remove_unused_columns=False`.

    Args:
        image_mean, image_std: normalization of uint8 pixels, one number or one for each channel.
        do_rescale: multiply uint8 pixels by `rescale_factor`.
        do_normalize: normalize uint8 pixels.
        keep_file_names: keep "file_name", which `EoMTTrainer` reports in errors.

    Returns:
        {"pixel_values": float32 (B, C, H, W), "mask_labels": list of (n_i, H, W), "class_labels": list of (n_i,)};
        "file_name" by `keep_file_names`, and "encoder_levels" if the samples have them.

    Raises:
        ValueError: for different numbers of images, mask labels and class labels.
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
        values = {name: getattr(processor, name, None) for name in fields}
        settings = {name: value for name, value in values.items() if value is not None}
        return cls(**settings, **options)

    def __call__(self, samples: list[dict]) -> dict:
        pixels, masks, labels, names = [], [], [], []
        for sample in samples:
            images = _entries(sample["pixel_values"], 3)
            raw = sample.get("unnormalized", False)
            pixels += [self._normalized(image) if raw or image.dtype == torch.uint8 else image for image in images]
            masks += _entries(sample.get("mask_labels"), 3)
            labels += _entries(sample.get("class_labels"), 1)
            names.append(sample.get("file_name"))
        batch = {"pixel_values": torch.stack(pixels)}  # [B, C, H, W]
        if "encoder_levels" in samples[0]:  # training/features.py
            batch["encoder_levels"] = torch.stack([sample["encoder_levels"] for sample in samples])
        if masks or labels:
            if len(masks) != len(pixels) or len(labels) != len(pixels):
                raise ValueError(f"{len(pixels)} images with {len(masks)} mask_labels and {len(labels)} class_labels")
            batch |= {"mask_labels": masks, "class_labels": [label.long() for label in labels]}
        if self.keep_file_names and any(names):
            batch["file_name"] = names
        return batch

    def _normalized(self, pixels: torch.Tensor) -> torch.Tensor:
        pixels = pixels.float()
        if self.do_rescale:
            pixels = pixels / 255 if self.rescale_factor == 1 / 255 else pixels * self.rescale_factor
        if self.do_normalize:
            pixels = (pixels - _per_channel(self.image_mean)) / _per_channel(self.image_std)
        return pixels


def _per_channel(value: Sequence[float] | float) -> torch.Tensor:
    """One number, or one for each channel, as a tensor (1 or channels, 1, 1)."""
    return torch.as_tensor(value, dtype=torch.float32).reshape(-1, 1, 1)


def _entries(value, ndim: int) -> list[torch.Tensor]:
    """One tensor of `ndim` dimensions per image, from a tensor, a list or a batch."""
    if value is None:
        return []
    if isinstance(value, (list, tuple)) and value and torch.as_tensor(value[0]).ndim == ndim:
        return [torch.as_tensor(v) for v in value]
    value = torch.as_tensor(value)
    return list(value) if value.ndim == ndim + 1 else [value]
