"""Segmentation maps as people give them: pngs, arrays, tensors → (H, W) ids."""

import os

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .reading import open_file


def read_maps(maps, count: int) -> list[Tensor]:
    """One map, its path, a list or a stack of them, for `count` images → (H, W) int64 ids of each."""
    single = isinstance(maps, (Image.Image, str, os.PathLike))
    single |= isinstance(maps, (np.ndarray, Tensor)) and (maps.ndim == 2 or (maps.ndim == 3 and count == 1))
    maps = [maps] if single else list(maps)
    if len(maps) != count:
        raise ValueError(f"{len(maps)} segmentation_maps for {count} images; give one an image")
    return [read_map(open_file(m) if isinstance(m, (str, os.PathLike)) else m) for m in maps]


def read_map(segmentation_map) -> Tensor:
    """PIL image, array or tensor of (H, W), one channel, or RGB-coded ids → (H, W) int64 ids."""
    if isinstance(segmentation_map, Image.Image):
        segmentation_map = picture_ids(segmentation_map)
    if isinstance(segmentation_map, Tensor):
        ids = segmentation_map
    else:
        array = np.asarray(segmentation_map)
        if array.dtype.kind not in "buif":
            raise ValueError(f"a segmentation map holds numbers, not {array.dtype}")
        ids = torch.from_numpy(array.astype(np.int64))
    if ids.ndim == 3 and 1 in (ids.shape[0], ids.shape[-1]):
        ids = ids[0] if ids.shape[0] == 1 else ids[..., 0]
    elif ids.ndim == 3 and 3 in (ids.shape[0], ids.shape[-1]):
        ids = rgb_to_id(ids if ids.shape[-1] == 3 else ids.permute(1, 2, 0))
    if ids.ndim != 2:
        raise ValueError(f"segmentation map of shape {tuple(ids.shape)}: give (H, W), or (H, W, 3) RGB-coded ids")
    return ids.long()


def picture_ids(picture: Image.Image) -> np.ndarray:
    """Label picture → (H, W) int32: RGB-coded ids, or its one channel's values; a palette's indices are the labels.

    Raises:
        ValueError: for any other kind of picture.
    """
    pixels = np.asarray(picture)
    if picture.mode in ("RGB", "RGBA"):
        return rgb_to_id(pixels)
    if pixels.ndim != 2 or pixels.dtype.kind == "f":
        raise ValueError(f"a label image needs one channel or RGB, not mode {picture.mode!r}")
    return pixels.astype(np.int32)


def rgb_to_id(rgb: np.ndarray | Tensor) -> np.ndarray | Tensor:
    """(…, 3) or (…, 4) uint8 → (…) int32 ids, R + 256 G + 65536 B."""
    rgb = rgb.astype(np.int32) if isinstance(rgb, np.ndarray) else rgb.int()
    return rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]


def id_to_rgb(ids: np.ndarray) -> np.ndarray:
    """(…) ids, R + 256 G + 65536 B → (…, 3) uint8."""
    return np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
