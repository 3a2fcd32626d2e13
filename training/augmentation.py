"""Augmentation as in the authors' code: color jitter, flip, scale jitter, pad, random crop, drop empty.

H, W image · h, w after scale jitter · S_h, S_w the crop · n segments

Only the image is resized. A target is *gathered*: nearest resizing, flip and crop are one choice of rows and columns,
so the target costs one (S_h, S_w) look-up whatever the scale, and segments become masks only after it. Random numbers
come from torch's generator. Images are uint8 throughout, as the authors' are; padding is 0 (black), void in the target.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as V2

from ..image_processing.geometry import placement

BRIGHTNESS, CONTRAST, SATURATION, HUE = 32 / 255, 0.5, 0.5, 18 / 360  # factors 1 ± x; hue in parts of the circle


def uniform(low: float, high: float) -> float:
    return low + (high - low) * torch.rand(()).item()


def chance(p: float = 0.5) -> bool:
    return torch.rand(()).item() < p


def color_jitter(image: torch.Tensor) -> torch.Tensor:
    """uint8 (3, H, W) → the same: each of the four changes with p = 0.5; contrast before or after the others."""

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
    """One draw of flip, scale and crop: `image(…)` and `target(…)` apply the same to both."""

    source: tuple[int, int]  # (H, W)
    resized: tuple[int, int]  # (h, w)
    offset: tuple[int, int]  # the crop's top left corner in the padded (≥ S_h, ≥ S_w) image
    size: tuple[int, int]  # (S_h, S_w)
    flip: bool

    @classmethod
    def draw(cls, source: tuple[int, int], size: tuple[int, int], scale_range: tuple[float, float]) -> "Geometry":
        """Flip with p = 0.5; s ~ U(scale_range); r = min(S_h/H, S_w/W)·s; size (int(H r), int(W r)); a uniform crop."""
        flip = chance()
        ratio = min(size[0] / source[0], size[1] / source[1]) * uniform(*scale_range)
        resized = tuple(max(1, int(side * ratio)) for side in source)  # 1: a sliver never vanishes
        offset = tuple(
            int(torch.randint(0, max(side, window) - window + 1, ()).item()) for side, window in zip(resized, size)
        )
        return cls(source, resized, offset, size, flip)

    @classmethod
    def fit(cls, source: tuple[int, int], size: tuple[int, int]) -> "Geometry":
        """No chance: the largest size that fits, padded right and bottom, as the authors evaluate."""
        return cls(source, placement(*source, size).resized, (0, 0), size, False)

    def image(self, image: torch.Tensor) -> torch.Tensor:
        """uint8 (3, H, W) → uint8 (3, S_h, S_w), bilinear with antialias."""
        if self.flip:
            image = V2.horizontal_flip(image)
        image = V2.resize(image, list(self.resized), InterpolationMode.BILINEAR, antialias=True)  # [3, h, w]
        padding = [max(0, window - side) for side, window in zip(self.resized, self.size)]
        if any(padding):
            image = V2.pad(image, [0, 0, padding[1], padding[0]], fill=0)
        return V2.crop(image, *self.offset, *self.size)

    def target(self, target: torch.Tensor, void) -> torch.Tensor:
        """(…, H, W) of any dtype → (…, S_h, S_w), nearest; `void` where there is padding."""
        rows = self._index(0)  # [≤ S_h] source rows
        columns = self._index(1)
        if self.flip:
            columns = self.source[1] - 1 - columns
        part = target.index_select(-2, rows).index_select(-1, columns)  # [..., ≤ S_h, ≤ S_w]
        padding = (0, self.size[1] - part.shape[-1], 0, self.size[0] - part.shape[-2])
        return F.pad(part, padding, value=void) if any(padding) else part

    def _index(self, axis: int) -> torch.Tensor:
        """The source index of every kept row or column: nearest resizing of 0, 1, …, so its rounding is torch's own."""
        count = torch.arange(self.source[axis], dtype=torch.float32)[None, None]
        index = F.interpolate(count, size=self.resized[axis], mode="nearest")[0, 0].long()  # [h or w]
        return index[self.offset[axis] : self.offset[axis] + self.size[axis]]


def ids_to_positions(ids: np.ndarray, segment_ids: list[int]) -> torch.Tensor:
    """Id map (H, W) → uint8 or int16 (H, W): 1 + position in `segment_ids`, 0 for any other id.

    Ids of COCO need three bytes a pixel; a position needs one, and everything after this reads and moves only that.
    Maps are piecewise constant, so only where a run of equal pixels starts is an id looked up.
    """
    dtype = np.uint8 if len(segment_ids) < 256 else np.int16
    flat = ids.ravel()
    if not flat.size or not segment_ids:
        return torch.zeros(ids.shape, dtype=torch.uint8)
    start = np.flatnonzero(np.append(True, flat[1:] != flat[:-1]))  # [runs]
    order = np.argsort(segment_ids)
    known = np.asarray(segment_ids)[order]
    place = np.searchsorted(known, flat[start]).clip(max=len(known) - 1)
    position = np.where(known[place] == flat[start], order[place] + 1, 0).astype(dtype)
    return torch.from_numpy(position.repeat(np.diff(start, append=flat.size)).reshape(ids.shape))


def positions_to_masks(positions: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(S_h, S_w) of 0 … n → bool masks (m, S_h, S_w) of the segments with a pixel, and which of the n they are (m,)."""
    pixels = torch.bincount(positions.flatten(), minlength=count + 1)[1:]  # [n]
    kept = pixels.nonzero()[:, 0]
    masks = torch.empty(len(kept), *positions.shape, dtype=torch.bool)
    for mask, position in zip(masks, (kept + 1).tolist()):
        torch.eq(positions, position, out=mask)
    return masks, kept
