"""Inference on large images: segment overlapping tiles and the whole image, and join their segments.

H, W image (pixels) · h, w tile

Tiles show small objects at full resolution; the whole image shows objects larger than a tile (semantic: tiles alone).
One row of tiles is kept: memory beyond the image and the result grows with the width of the image only. Rasters are
read tile by tile.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from ..image_processing.inference import FAILS_ALONE, Inferred, error_line, infer
from ..image_processing.rasters import Raster
from .instances import InstanceJoin
from .panoptic import PanopticJoin
from .semantic import SemanticJoin
from .tiles import Tile, cut

WHOLE_SIDE = 4096  # pixels; longest side at which the whole image is segmented
JOINS = {"panoptic": PanopticJoin, "instance": InstanceJoin, "semantic": SemanticJoin}


def infer_tiled(
    model,
    processor,
    items: Sequence,
    *,
    tile: int,
    overlap: float = 0.25,
    read: Callable[[object], Image.Image | Raster],
    on_error: Callable[[object, str], None],
    batch_size: int = 1,
    show_progress: bool = False,
    **rules,
) -> Iterator[Inferred]:
    """`infer` in tiles, image by image. `batch_size` counts tiles; further arguments as for `infer_tiles`."""
    for item in items:
        try:
            image = read(item)
            size = (image.height, image.width)
            tiles = len(cut(size, tile, overlap))
            total = tiles if processor.task == "semantic" else tiles + 1
            hidden = not show_progress or tiles == 1
            with tqdm(total=total, desc=str(item), unit="tile", leave=False, disable=hidden) as bar:
                options = {"tile": tile, "overlap": overlap, "batch_size": batch_size, "on_tile": bar.update}
                prediction = infer_tiles(model, processor, image, **options, **rules)
        except FAILS_ALONE as error:
            on_error(item, error_line(error))
        else:
            yield Inferred(item, size, prediction)
            del prediction  # results of large images are large


def infer_tiles(
    model,
    processor,
    image: Image.Image | Raster,
    *,
    tile: int,
    overlap: float = 0.25,
    batch_size: int = 1,
    on_tile: Callable[[], object] | None = None,
    **rules,
) -> dict:
    """Segment a large image in tiles. An image of at most one tile is segmented without tiling.

    Args:
        model, processor, rules: as for `infer`.
        image: RGB, or a raster of `open_raster`.
        tile: side of a tile in pixels of the image. With the input size of the model, tiles are not resized.
        overlap: least share of a tile that its neighbor also covers, 0 to 0.5. Objects are joined there.
        on_tile: called after each tile and after the whole image.

    Returns:
        The prediction in the format of `predict_image`; instances with scores of at least 0.05.

    Raises:
        ValueError: for tiles smaller than a patch, or an overlap outside its range.
    """
    require_tiles(tile, overlap, model.config.patch_size)
    size = (image.height, image.width)
    tiles = cut(size, tile, overlap)

    def read(part: Tile | None) -> Image.Image | Tensor:
        """A tile, or the whole image for None."""
        if part is None:
            factor = math.ceil(max(size) / WHOLE_SIDE)
            return image.reduce(factor) if isinstance(image, Image.Image) else image.reduced(factor)
        if isinstance(image, Image.Image):
            return image.crop((part.columns.start, part.rows.start, part.columns.stop, part.rows.stop))
        return image.read(part.rows, part.columns)

    if len(tiles) == 1:
        return next(infer(model, processor, tiles, read=read, **rules)).prediction
    join = JOINS[processor.task](size, tile)
    parts = tiles if processor.task == "semantic" else [None, *tiles]
    for result in infer(model, processor, parts, batch_size=batch_size, read=read, **rules):
        if result.item is None:
            join.add_whole(result.size, result.prediction)
        else:
            join.add(result.item, result.prediction)
        if on_tile:
            on_tile()
    return join.result()


def require_tiles(side: int, overlap: float, patch_size) -> None:
    """Raise `ValueError` for a tile smaller than a patch, or an overlap outside 0 to 0.5."""
    patch = int(np.max(patch_size))
    if side < patch:
        raise ValueError(f"a tile of {side} pixels is smaller than a patch of the model; give {patch} or more")
    if not 0 <= overlap <= 0.5:
        raise ValueError(f"overlap is {overlap}; give a share of the tile from 0 to 0.5")
