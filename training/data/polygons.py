"""Instance shapes: COCO polygons and run-length encodings (RLE) as compressed RLE, by pycocotools."""

import math

from pycocotools import mask as coco_mask

MAX_SIDES = 10  # longer sides of the image: pycocotools runs out of memory for a coordinate far beyond them
MAX_COORDINATE = 1e5  # pixels, for an image of unknown size


def check_shape(shape, size: tuple[int, ...] = ()) -> None:
    """Check a COCO `segmentation`.

    Args:
        shape: polygons [[x1, y1, x2, y2, …], …] in pixels, or RLE {"size": [H, W], "counts": str or list}.
        size: (H, W) of the image, () if unknown.

    Raises:
        ValueError: for a malformed shape, an RLE of another size, or coordinates far outside of the image.
    """
    if isinstance(shape, dict):
        return _check_rle(shape, size)
    if not isinstance(shape, list) or not shape:
        raise ValueError("it has no segmentation (polygons or an RLE)")
    for polygon in shape:
        if not isinstance(polygon, list):
            raise ValueError(f"a polygon is a list of coordinates, not {polygon!r}")
        if len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(f"a polygon needs an even number of at least 6 coordinates, not {len(polygon)}")
        try:
            finite = math.isfinite(sum(polygon))  # one check per polygon: COCO has tens of millions of coordinates
        except (TypeError, OverflowError):  # OverflowError: an integer beyond the range of a float
            finite = False
        if not finite:
            raise ValueError("a polygon has a coordinate that is not a number")
        farthest = max(polygon, key=abs)
        if abs(farthest) > (MAX_SIDES * max(size) if size else MAX_COORDINATE):
            raise ValueError(f"a polygon has the coordinate {farthest:g}, far outside of its image")


def _check_rle(shape: dict, size: tuple[int, ...]) -> None:
    """pycocotools does not check the sum of the runs and would write past the mask."""
    counts, own = shape.get("counts"), shape.get("size")
    if not isinstance(counts, (list, str)) or not isinstance(own, list):
        raise ValueError("its RLE needs 'counts' (a list or a string) and 'size'")
    if len(own) != 2 or not all(isinstance(side, int) and side > 0 for side in own):
        raise ValueError(f"its RLE has size {own}; it needs [height, width]")
    if size and own != list(size):
        raise ValueError(f"its RLE has size {own}, its image {list(size)} (height, width)")
    runs = counts if isinstance(counts, list) else _runs(counts)
    if not all(isinstance(run, int) and run >= 0 for run in runs):
        raise ValueError("its RLE counts are damaged")
    if sum(runs) != own[0] * own[1]:
        raise ValueError(f"its RLE counts add up to {sum(runs)} pixels, not {own[0]}×{own[1]}")


def _runs(text: str) -> list[int]:
    """The run lengths in COCO's compressed counts. Raises `ValueError` for truncated text or invalid characters.

    A character holds six bits, counted from "0": five bits of a number, lowest first, and a continuation bit. The
    highest bit of the last character is the sign. From the fourth number on, a number is the difference to the run
    two places earlier.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise ValueError(f"its RLE counts have the character {character!r}")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("its RLE counts are truncated")
    return runs


def to_rle(shape, height: int, width: int) -> dict:
    """One compressed RLE {"size", "counts": bytes} of a COCO `segmentation`.

    Polygons are checked again, because the size of the image is known only here. Raises `ValueError` if malformed.
    """
    if isinstance(shape, list):
        check_shape(shape, (height, width))
        return coco_mask.merge(coco_mask.frPyObjects(shape, height, width))
    if isinstance(shape["counts"], list):
        return coco_mask.frPyObjects(shape, height, width)
    return {"size": list(shape["size"]), "counts": shape["counts"].encode()}
