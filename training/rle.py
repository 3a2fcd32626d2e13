"""Masks as COCO's compressed run-length encoding {"size": [H, W], "counts": bytes}."""

import numpy as np
from pycocotools import mask as coco_mask


def encode_masks(masks: np.ndarray) -> list[dict]:
    """bool (n, H, W) → n compressed RLEs."""
    if not len(masks):
        return []
    return coco_mask.encode(np.asfortranarray(np.asarray(masks, np.uint8).transpose(1, 2, 0)))


def rle_areas(rles: list[dict]) -> np.ndarray:
    """Pixels of each mask: (n,). One by one: pycocotools' own list overflows at 256 masks with numpy 2.4."""
    return np.array([int(coco_mask.area(rle)) for rle in rles], np.int64)
