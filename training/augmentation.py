"""Augmentation as in the authors' code: color jitter, flip, scale jitter, pad, random crop, drop empty segments.

H, W image · h, w after scale jitter · S_h, S_w crop · n segments

Targets are not resized but *gathered*: nearest resizing, flip and crop are one selection of rows and columns, so a
target costs one (S_h, S_w) look-up at any scale. Masks are made from the result. Random numbers come from torch's
generator. Images are uint8, as in the authors' code. Padding is black in images and void in targets.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as V2

from ..image_processing.geometry import placement
from ..image_processing.images import look_up

BRIGHTNESS, CONTRAST, SATURATION, HUE = 32 / 255, 0.5, 0.5, 18 / 360  # factors 1 ± x; hue as a share of the circle


def uniform(low: float, high: float) -> float:
    return low + (high - low) * torch.rand(()).item()


def chance(p: float = 0.5) -> bool:
    return torch.rand(()).item() < p


def color_jitter(image: torch.Tensor) -> torch.Tensor:
    """Jitter a uint8 (3, H, W) image: four changes with p = 0.5 each, contrast before or after saturation and hue."""
    if chance():
        image = V2.adjust_brightness(image, uniform(1 - BRIGHTNESS, 1 + BRIGHTNESS))
    contrast_first = chance()
    if contrast_first:
        image = _jitter_contrast(image)
    if chance():
        image = V2.adjust_saturation(image, uniform(1 - SATURATION, 1 + SATURATION))
    if chance():
        image = V2.adjust_hue(image, uniform(-HUE, HUE))
    return image if contrast_first else _jitter_contrast(image)


def _jitter_contrast(image: torch.Tensor) -> torch.Tensor:
    return V2.adjust_contrast(image, uniform(1 - CONTRAST, 1 + CONTRAST)) if chance() else image


@dataclass(frozen=True)
class Geometry:
    """One draw of flip, scale and crop, for both the image and its target."""

    source: tuple[int, int]  # (H, W)
    resized: tuple[int, int]  # (h, w)
    offset: tuple[int, int]  # top left corner of the crop in the padded (≥ S_h, ≥ S_w) image
    size: tuple[int, int]  # (S_h, S_w)
    flip: bool

    @classmethod
    def draw(cls, source: tuple[int, int], size: tuple[int, int], scale_range: tuple[float, float]) -> "Geometry":
        """Flip with p = 0.5, size (int(H r), int(W r)) with r = min(S_h/H, S_w/W) · U(scale_range), uniform crop."""
        flip = chance()
        ratio = min(size[0] / source[0], size[1] / source[1]) * uniform(*scale_range)
        resized = tuple(max(1, int(side * ratio)) for side in source)  # at least 1, for very narrow images
        offset = tuple(
            int(torch.randint(0, max(side, window) - window + 1, ()).item()) for side, window in zip(resized, size)
        )
        return cls(source, resized, offset, size, flip)

    @classmethod
    def fit(cls, source: tuple[int, int], size: tuple[int, int]) -> "Geometry":
        """No augmentation: resized to fit the crop, padded right and bottom, as in the authors' evaluation."""
        return cls(source, placement(*source, size).resized, (0, 0), size, False)

    def image(self, image: torch.Tensor) -> torch.Tensor:
        """Transform uint8 (3, H, W) to (3, S_h, S_w), bilinear with antialias."""
        if self.flip:
            image = V2.horizontal_flip(image)
        image = V2.resize(image, list(self.resized), InterpolationMode.BILINEAR, antialias=True)  # [3, h, w]
        padding = [max(0, window - side) for side, window in zip(self.resized, self.size)]
        if any(padding):
            image = V2.pad(image, [0, 0, padding[1], padding[0]], fill=0)
        return V2.crop(image, *self.offset, *self.size)

    def target(self, target: torch.Tensor, void) -> torch.Tensor:
        """Transform (…, H, W) of any dtype to (…, S_h, S_w), nearest, padded with `void`."""
        rows = self._index(0)  # [≤ S_h] source rows
        columns = self._index(1)
        if self.flip:
            columns = self.source[1] - 1 - columns
        part = target.index_select(-2, rows).index_select(-1, columns)  # [..., ≤ S_h, ≤ S_w]
        padding = (0, self.size[1] - part.shape[-1], 0, self.size[0] - part.shape[-2])
        return F.pad(part, padding, value=void) if any(padding) else part

    def _index(self, axis: int) -> torch.Tensor:
        """Source index of every row or column in the crop. The indices are resized by torch, for the same rounding."""
        indices = torch.arange(self.source[axis], dtype=torch.float32)[None, None]
        index = F.interpolate(indices, size=self.resized[axis], mode="nearest")[0, 0].long()  # [h or w]
        return index[self.offset[axis] : self.offset[axis] + self.size[axis]]


def ids_to_positions(ids: np.ndarray, segment_ids: list[int]) -> torch.Tensor:
    """Map of positions (H, W), uint8 or int16: 1 + position in `segment_ids`, 0 for other ids.

    COCO's ids need three bytes per pixel, positions only one for all later steps.
    """
    dtype = np.uint8 if len(segment_ids) < 256 else np.int16
    return torch.from_numpy((look_up(ids, segment_ids) + 1).astype(dtype))


def positions_to_masks(positions: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks (m, S_h, S_w) bool of the segments in a map of positions 0 … n, and the indices (m,) of these segments."""
    pixels = torch.bincount(positions.flatten(), minlength=count + 1)[1:]  # [n]
    kept = pixels.nonzero()[:, 0]
    masks = torch.empty(len(kept), *positions.shape, dtype=torch.bool)
    for mask, position in zip(masks, (kept + 1).tolist()):
        torch.eq(positions, position, out=mask)
    return masks, kept
