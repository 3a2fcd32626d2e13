"""Segmentations of any form → one mask a segment.

H, W the image · n segments
"""

from collections.abc import Callable, Sequence

import numpy as np

from ..inference.encoding import segment_boxes

_KEPT_PIXELS = 2**18
"""Masks with a box up to this are kept, others read again when they are drawn."""
_MANY_IDS = 2**16
"""Ids from here (COCO's may reach 2²⁴) are looked for one by one."""


class SegmentMask:
    """A segment's box and area, and its pixels when they are asked for: all segments' pixels may not fit in memory."""

    def __init__(self, read: Callable[[slice, slice], np.ndarray], label: int, shape, box=None):
        """`read(rows, columns)`: that part of the mask, bool; `box`: rows and columns that hold all of it."""
        self.read, self.label, self.shape = read, int(label), shape
        start = box or (slice(0, shape[0]), slice(0, shape[1]))
        pixels = read(*start)
        rows, columns = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
        self.area, self.box, self.kept = int(np.count_nonzero(pixels)), None, None
        if len(rows):
            inner = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
            self.box = tuple(slice(a.start + b.start, a.start + b.stop) for a, b in zip(start, inner))
            self.kept = pixels[inner].copy() if pixels[inner].size <= _KEPT_PIXELS else None

    def pixels(self) -> np.ndarray:
        """The mask in its box."""
        return self.read(*self.box) if self.kept is None else self.kept


def segment_masks(segmentation, segments_info, ignore_index: int) -> list[SegmentMask]:
    """Any form → masks with their labels; empty masks are left out."""
    if segments_info is None:
        bands = (np.unique(segmentation[top : top + 256]) for top in range(0, len(segmentation), 256))
        present = sorted({int(c) for band in bands for c in band if c >= 0 and c != ignore_index})
        masks = [SegmentMask(_id_reader(segmentation, c), c, segmentation.shape) for c in present]
    elif isinstance(segmentation, Sequence) or segmentation.ndim == 3:
        shape = np.shape(segmentation[0]) if segments_info else ()
        masks = [SegmentMask(_stack_reader(segmentation, k), s["label_id"], shape) for k, s in enumerate(segments_info)]
    else:
        small = segmentation.max(initial=0) < _MANY_IDS and segmentation.min(initial=0) >= -1
        boxes = segment_boxes(segmentation) if small else {}
        masks = [
            SegmentMask(_id_reader(segmentation, s["id"]), s["label_id"], segmentation.shape, boxes.get(s["id"]))
            for s in segments_info
        ]
    return [mask for mask in masks if mask.area]


def _id_reader(segmentation: np.ndarray, segment: int):
    return lambda rows, columns: segmentation[rows, columns] == segment


def _stack_reader(masks, k: int):
    return lambda rows, columns: np.asarray(masks[k])[rows, columns].astype(bool)
