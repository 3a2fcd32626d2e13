"""Instance shapes: polygons and RLE as annotation files write them → one compressed RLE each, by pycocotools."""

import math

from pycocotools import mask as coco_mask

FAR = 10  # × the image's longer side: a coordinate beyond it is a mistake, and pycocotools would run out of memory
FAR_ANYWHERE = 1e5  # pixels, where the image's size is not known


def check_shape(shape, size: tuple[int, ...] = ()) -> None:
    """`ValueError` for a COCO `segmentation` that is malformed; size: (H, W) of its image, or ()."""
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
            finite = math.isfinite(sum(polygon))  # of all at once: COCO has tens of millions
        except (TypeError, OverflowError):  # the latter: an integer beyond any float
            finite = False
        if not finite:
            raise ValueError("a polygon has a coordinate that is not a number")
        farthest = max(polygon, key=abs)
        if abs(farthest) > (FAR * max(size) if size else FAR_ANYWHERE):
            raise ValueError(f"a polygon has the coordinate {farthest:g}, far outside of its image")


def _check_rle(shape: dict, size: tuple[int, ...]) -> None:
    """pycocotools trusts an RLE and would write past its mask, so its runs must add up."""
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
    """COCO's compressed counts → run lengths; `ValueError` where the text is cut or has foreign characters.

    Six bits a character from "0" on: five of the number, lowest first, and one that says the number continues; the
    last's highest is the sign. From the fourth on, a number is the difference to the run before the last.
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
        raise ValueError("its RLE counts are cut")
    return runs


def to_rle(shape, height: int, width: int) -> dict:
    """COCO `segmentation` → compressed RLE {"size", "counts": bytes} of the whole object.

    Polygons are checked again, now that the image's size is known: `ValueError` with what is wrong with them.
    """
    if isinstance(shape, list):
        check_shape(shape, (height, width))
        return coco_mask.merge(coco_mask.frPyObjects(shape, height, width))
    if isinstance(shape["counts"], list):
        return coco_mask.frPyObjects(shape, height, width)
    return {"size": list(shape["size"]), "counts": shape["counts"].encode()}
