"""Masks as COCO's compressed run-length encoding {"size": [H, W], "counts": bytes}, which counts down the columns."""

from collections.abc import Iterable

import numpy as np
from pycocotools import mask as coco_mask


def encode_masks(masks: Iterable[np.ndarray]) -> list[dict]:
    """n masks, bool (H, W) → n encoded masks."""
    return [coco_mask.encode(np.asfortranarray(mask, np.uint8)) for mask in masks]  # a copy of one at a time


def rle_areas(rles: list[dict]) -> np.ndarray:
    """Pixels of each mask: (n,). One by one: pycocotools' own list overflows at 256 masks with numpy 2.4."""
    return np.array([int(coco_mask.area(rle)) for rle in rles], np.int64)


def encode_window(pixels: np.ndarray, top: int, left: int, size: tuple[int, int]) -> dict:
    """(h, w) mask at (top, left) of an image of `size` (H, W) → its encoding in the image, without an (H, W) array."""
    return encode_runs(run_ends(np.asarray(pixels, bool), top, left, size[0]), size)


def run_ends(pixels: np.ndarray, top: int, left: int, height: int) -> np.ndarray:
    """(h, w) bool at (top, left) of an image `height` pixels high → where its runs start and stop, in turn: (2 n,)."""
    h, w = pixels.shape
    columns = np.zeros((w, h + 2), bool)  # the frame keeps the runs of two columns apart
    columns[:, 1:-1] = pixels.T
    flat = columns.ravel()
    column, row = np.divmod(np.flatnonzero(flat[1:] != flat[:-1]), h + 2)
    return (left + column) * height + top + row


def encode_runs(ends: np.ndarray, size: tuple[int, int]) -> dict:
    """`run_ends` of one mask, of several windows in any order → its encoding in an image of `size` (H, W)."""
    height, width = (int(side) for side in size)
    ends = np.sort(ends)  # runs do not overlap, so that each start is still followed by its stop
    joints = np.flatnonzero(ends[1::2][:-1] == ends[2::2])  # a run that continues in the next window or column
    ends = np.delete(ends, np.concatenate([2 * joints + 1, 2 * joints + 2]))
    counts = np.diff(np.concatenate([[0], ends, [height * width]]))
    counts = counts[:-1] if len(ends) and not counts[-1] else counts
    return coco_mask.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
