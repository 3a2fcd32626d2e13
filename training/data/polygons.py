"""Instance shapes: polygons and RLE as annotation files write them → one compressed RLE each, by pycocotools."""

import math

from pycocotools import mask as coco_mask


def check_shape(shape, size: tuple[int | None, int | None]) -> str | None:
    """What is wrong with a COCO `segmentation` for an image of (H, W), or None."""
    if isinstance(shape, dict):
        if not isinstance(shape.get("counts"), (list, str)) or "size" not in shape:
            return "its RLE needs 'counts' (a list or a string) and 'size'"
        if None not in size and list(shape["size"]) != list(size):
            return f"its RLE has size {list(shape['size'])}, its image {list(size)} (height, width)"
        if isinstance(shape["counts"], list) and sum(shape["counts"]) != shape["size"][0] * shape["size"][1]:
            return f"its RLE counts add up to {sum(shape['counts'])} pixels, not {shape['size'][0]}×{shape['size'][1]}"
        return None
    if not isinstance(shape, list) or not shape:
        return "it has no segmentation (polygons or an RLE)"
    for polygon in shape:
        if not isinstance(polygon, list):
            return f"a polygon is a list of coordinates, not {polygon!r}"
        if len(polygon) < 6 or len(polygon) % 2:
            return f"a polygon needs an even number of at least 6 coordinates, not {len(polygon)}"
        try:
            finite = math.isfinite(sum(polygon))
        except TypeError:
            finite = False
        if not finite:
            return "a polygon has a coordinate that is not a number"
    return None


def to_rle(shape, height: int, width: int) -> dict:
    """COCO `segmentation` → compressed RLE {"size", "counts": bytes} of the whole object."""
    if isinstance(shape, list):
        return coco_mask.merge(coco_mask.frPyObjects(shape, height, width))
    if isinstance(shape["counts"], list):
        return coco_mask.frPyObjects(shape, height, width)
    return {"size": list(shape["size"]), "counts": shape["counts"].encode()}
