"""Large images: overlapping tiles and the whole picture through the model, their segments joined to one result.

H, W the image (pixels) · h, w a tile

Tiles see small objects at full resolution, the whole picture sees objects that no tile holds. Beside the picture and
the result nothing grows with the image but one row of tiles.
"""

import math
from functools import partial

import numpy as np
from PIL import Image

from .joined_instances import InstanceJoin
from .joined_panoptic import PanopticJoin
from .segment import segment
from .tiles import Tile, cut

WHOLE_SIDE = 4096
"""The whole picture is segmented at most so long (pixels): its masks have a cell for every 4 pixels of the input."""


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
