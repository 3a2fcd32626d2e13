"""Overlapping tiles of a large image.

H, W image (pixels)
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np


@dataclass(frozen=True)
class Tile:
    """A rectangle of the image and its core, both as slices of rows and columns.

    The core is the part nearer to the center of this tile than to any other. Cores do not overlap and cover the image.
    """

    rows: slice
    columns: slice
    core_rows: slice
    core_columns: slice
    open_sides: tuple[bool, bool, bool, bool]
    "Top, bottom, left, right: whether the image continues beyond this side. An open side can cut objects."

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start


def cut(size: tuple[int, int], side: int, overlap: float) -> list[Tile]:
    """The fewest tiles of `side` pixels with at least this overlap (a share of the side), row by row."""
    height, width = size
    return [
        Tile(rows, columns, core_rows, core_columns, (*open_rows, *open_columns))
        for rows, core_rows, open_rows in _spans(height, side, overlap)
        for columns, core_columns, open_columns in _spans(width, side, overlap)
    ]


def common_span(a: slice, b: slice) -> slice | None:
    """The common part of two spans of rows, or of columns."""
    start, stop = max(a.start, b.start), min(a.stop, b.stop)
    return slice(start, stop) if start < stop else None


def within_span(part: slice, span: slice) -> slice:
    """A part of a span of rows, or of columns, relative to the start of the span."""
    return slice(part.start - span.start, part.stop - span.start)


def source_indices(size: tuple[int, int], scaled: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Rows (H,) and columns (W,) of a map of `size` (h, w) for the pixels of the map scaled to (H, W)."""
    return tuple(np.arange(out) * length // out for length, out in zip(size, scaled))


def root_of(parent: list[int], index: int) -> int:
    """The root of a node in a forest of parents. Shortens the path to it."""
    while parent[index] != index:
        parent[index] = index = parent[parent[index]]
    return index


def _spans(length: int, side: int, overlap: float) -> list[tuple[slice, slice, tuple[bool, bool]]]:
    """(span, its core, whether the image continues before and after it) for evenly spaced tiles."""
    if length <= side:
        return [(slice(0, length), slice(0, length), (False, False))]
    count = math.ceil((length - side) / max(1, side * (1 - overlap))) + 1
    starts = [round(i * (length - side) / (count - 1)) for i in range(count)]
    middles = [(before + side + after) // 2 for before, after in pairwise(starts)]  # of the overlaps
    cores = pairwise([0, *middles, length])
    return [
        (slice(start, start + side), slice(*core), (i > 0, i < count - 1))
        for i, (start, core) in enumerate(zip(starts, cores))
    ]
