"""Overlapping tiles of a large image.

H, W image (pixels)
"""

import math
from dataclasses import dataclass
from itertools import pairwise


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
    "Top, bottom, left, right: whether the image continues beyond this side. Such a side can cut objects."

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start


def cut(size: tuple[int, int], side: int, overlap: float) -> list[Tile]:
    """The fewest tiles of `side` pixels with at least this overlap (a share of the side), row by row."""
    bands, columns = (_spans(length, side, overlap) for length in size)
    return [
        Tile(rows, cols, core_rows, core_cols, (*open_rows, *open_cols))
        for rows, core_rows, open_rows in bands
        for cols, core_cols, open_cols in columns
    ]


def common_span(a: slice, b: slice) -> slice | None:
    """The part of the image's rows, or columns, that two spans share."""
    start, stop = max(a.start, b.start), min(a.stop, b.stop)
    return slice(start, stop) if start < stop else None


def within_span(part: slice, span: slice) -> slice:
    """A part of the image's rows, or columns, relative to the start of a span around it."""
    return slice(part.start - span.start, part.stop - span.start)


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
    borders = [0, *((after + before + side) // 2 for before, after in pairwise(starts)), length]
    return [
        (slice(start, start + side), slice(borders[i], borders[i + 1]), (i > 0, i < count - 1))
        for i, start in enumerate(starts)
    ]
