"""COCO's compressed run-length encoding of masks, {"size": [H, W], "counts": bytes}, along the columns."""

from collections.abc import Iterable

import numpy as np
from pycocotools import mask as coco_mask


def encode_masks(masks: Iterable[np.ndarray]) -> list[dict]:
    """Encode (H, W) bool masks."""
    return [coco_mask.encode(np.asfortranarray(mask, np.uint8)) for mask in masks]  # copies one mask at a time


def rle_areas(rles: list[dict]) -> np.ndarray:
    """Pixels of each mask, (n,). Computed one by one: lists of 256 masks overflow in pycocotools with numpy 2.4."""
    return np.array([int(coco_mask.area(rle)) for rle in rles], np.int64)


def encode_window(pixels: np.ndarray, top: int, left: int, size: tuple[int, int]) -> dict:
    """Encode an (h, w) mask at (top, left) of an image of `size` (H, W), without an (H, W) array."""
    return encode_runs(run_ends(np.asarray(pixels, bool), top, left, size[0]), size)


def run_ends(pixels: np.ndarray, top: int, left: int, height: int) -> np.ndarray:
    """Starts and stops, in turn, of the n runs of an (h, w) mask at (top, left) of an image of this height: (2 n,)."""
    h, w = pixels.shape
    columns = np.zeros((w, h + 2), bool)  # the border separates the runs of two columns
    columns[:, 1:-1] = pixels.T
    flat = columns.ravel()
    column, row = np.divmod(np.flatnonzero(flat[1:] != flat[:-1]), h + 2)
    return (left + column) * height + top + row


def encode_runs(ends: np.ndarray, size: tuple[int, int]) -> dict:
    """Encode a mask of `size` (H, W) from its `run_ends` in one or several windows, in any order."""
    height, width = (int(side) for side in size)
    ends = np.sort(ends)  # runs do not overlap, so each stop still follows its start
    joints = np.flatnonzero(ends[1:-1:2] == ends[2::2])  # a run that continues in the next window or column
    ends = np.delete(ends, np.concatenate([2 * joints + 1, 2 * joints + 2]))
    counts = np.diff(np.concatenate([[0], ends, [height * width]]))
    if len(ends) and counts[-1] == 0:  # the last run ends with the mask
        counts = counts[:-1]
    return coco_mask.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
