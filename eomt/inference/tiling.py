"""Large images: overlapping tiles and the whole picture through the model, their segments joined to one result.

H, W the image (pixels) · h, w a tile

Tiles see small objects at full resolution, the whole picture sees objects that no tile holds. Beside the picture and
the result nothing grows with the image but one row of tiles.
"""

import math
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
from PIL import Image

from .joined_instances import InstanceJoin
from .joined_panoptic import PanopticJoin
from .segment import segment

WHOLE_SIDE = 4096
"""The whole picture is segmented at most so long (pixels): its masks have a cell for every 4 pixels of the input."""


@dataclass(frozen=True)
class Tile:
    """A rectangle of the image, and its core: the part that lies nearer to its center than to any other tile's.

    Cores do not overlap and cover the image. Both are (rows, columns) slices of the image.
    """

    rows: slice
    columns: slice
    core_rows: slice
    core_columns: slice
    open_sides: tuple[bool, bool, bool, bool]
    "Top, bottom, left, right: whether the image continues there, so that an object may be cut."

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start


def cut(size: tuple[int, int], side: int, overlap: float) -> list[Tile]:
    """(H, W) → the fewest tiles of `side` pixels with at least this overlap (a share of the side), row by row."""
    bands, columns = (_spans(length, side, overlap) for length in size)
    return [
        Tile(rows, cols, core_rows, core_cols, (*open_rows, *open_cols))
        for rows, core_rows, open_rows in bands
        for cols, core_cols, open_cols in columns
    ]


def require_tiles(side: int, overlap: float, task: str, patch: int) -> None:
    """`ValueError` for tiles that cannot be used."""
    if task == "semantic":
        raise ValueError("--tile is for panoptic and instance segmentation; semantic models cut windows of their own")
    if side < patch:
        raise ValueError(f"--tile {side} is smaller than a patch of the model, {patch} pixels; give {patch} or more")
    if not 0 <= overlap <= 0.5:
        raise ValueError(f"--overlap {overlap}: give a share of the tile from 0 to 0.5")


def segment_tiles(
    model,
    processor,
    image: Image.Image,
    *,
    tile: int,
    overlap: float = 0.25,
    batch_size: int = 1,
    on_tile=None,
    **rules,
) -> dict:
    """A large picture → its prediction, as `post_process` gives it: panoptic segments or instances.

    Args:
        model, processor, rules: as for `segment`.
        image: RGB, in memory.
        tile: side of a tile in pixels of the image; the model's input size shows them as they are.
        overlap: least share of a tile that its neighbor sees too, 0 to 0.5. Objects are joined there.
        on_tile: called after each of the tiles and the whole picture.

    Instances that score below 0.05 are left out; a picture that fits in a tile is segmented as without tiles.

    Raises:
        ValueError: for a semantic processor, tiles smaller than a patch, or such an overlap.
    """
    patch = max(np.ravel(model.config.patch_size).tolist())
    require_tiles(tile, overlap, processor.task, patch)
    size = (image.height, image.width)
    tiles = cut(size, tile, overlap)
    if len(tiles) == 1:
        return next(segment(model, processor, [image], **rules)).prediction
    join = (PanopticJoin if processor.task == "panoptic" else InstanceJoin)(size, tile)
    results = segment(
        model, processor, [None, *tiles], batch_size=batch_size, read=partial(_part, image=image), **rules
    )
    for result in results:
        if result.item is None:
            join.add_whole(result.size, result.prediction)
        else:
            join.add(result.item, result.prediction)
        if on_tile:
            on_tile()
    return join.result()


def _part(tile: Tile | None, image: Image.Image) -> Image.Image:
    """A tile's pixels; for None the whole picture, scaled down to where its masks lose nothing."""
    if tile is not None:
        return image.crop((tile.columns.start, tile.rows.start, tile.columns.stop, tile.rows.stop))
    factor = math.ceil(max(image.size) / WHOLE_SIDE)
    return image.reduce(factor) if factor > 1 else image


def _spans(length: int, side: int, overlap: float) -> list[tuple[slice, slice, tuple[bool, bool]]]:
    """(span, its core, whether the image continues before and after it), evenly spread."""
    if length <= side:
        return [(slice(0, length), slice(0, length), (False, False))]
    count = math.ceil((length - side) / max(1, side * (1 - overlap))) + 1
    starts = [round(i * (length - side) / (count - 1)) for i in range(count)]
    borders = [0, *((after + before + side) // 2 for before, after in pairwise(starts)), length]
    return [
        (slice(start, start + side), slice(borders[i], borders[i + 1]), (i > 0, i < count - 1))
        for i, start in enumerate(starts)
    ]
