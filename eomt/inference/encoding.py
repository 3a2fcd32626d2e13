"""One prediction in the reference tools' formats: COCO panoptic (png, segments), COCO instance results, label png."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image
from pycocotools import mask as rle
from scipy import ndimage

from ..image_processing.maps import id_to_rgb

_BAND = 256
"""Rows that are recoded at once."""
VOID_LABELS = {1: 255, 2: 65535, 3: 0xFFFFFF}
"""Pixels of no class in a label png, by its bytes a pixel."""


def panoptic_png(segmentation, segments_info: Sequence[Mapping], category_ids: Sequence[int]):
    """(H, W) ids, segments → (H, W, 3) uint8 of COCO's coding, its `segments_info`. Ids start at 1: 0 is void."""
    ids, segments = np.asarray(segmentation), []
    coded = np.zeros((*ids.shape, 3), np.uint8)
    boxes = segment_boxes(ids)
    for number, segment in enumerate(segments_info, start=1):
        rows, columns = boxes.get(segment["id"], (slice(0, 0), slice(0, 0)))
        inside = ids[rows, columns] == segment["id"]
        for channel in range(3):
            value = number >> 8 * channel & 255
            np.copyto(coded[rows, columns, channel], value, where=inside, casting="unsafe")
        box = [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start]
        entry = {"id": number, "category_id": int(category_ids[segment["label_id"]]), "iscrowd": 0}
        entry |= {"area": int(np.count_nonzero(inside)), "bbox": [int(v) for v in box]}
        segments.append(entry | ({"score": float(segment["score"])} if "score" in segment else {}))
    return coded, segments


def instance_results(image_id, prediction: Mapping, category_ids: Sequence[int]) -> list[dict]:
    """n encoded masks, their labels and scores → COCO results; empty masks are left out."""
    results = []
    for mask, label, score in zip(prediction["masks"], prediction["labels"], prediction["scores"]):
        if not rle.area(mask):
            continue
        segmentation = {"size": [int(v) for v in mask["size"]], "counts": mask["counts"].decode("ascii")}
        result = {"image_id": image_id, "category_id": int(category_ids[int(label)]), "segmentation": segmentation}
        results.append(result | {"bbox": [float(v) for v in rle.toBbox(mask)], "score": float(score)})
    return results


def label_png(segmentation, category_ids: Sequence[int]) -> Image.Image:
    """(H, W) labels → picture with the category id of each pixel; void is 255, or 65535 where ids need 16 bits.

    Ids beyond 16 bits are colors, R + 256 G + 65536 B, and so is the picture; void is white.
    """
    labels, highest = np.asarray(segmentation), max(category_ids)
    if highest > VOID_LABELS[2]:
        table = id_to_rgb(np.array([*category_ids, VOID_LABELS[3]]))
    elif highest >= VOID_LABELS[1]:
        table = np.array([*category_ids, VOID_LABELS[2]]).astype(np.uint16)
    else:
        table = np.array([*category_ids, VOID_LABELS[1]]).astype(np.uint8)
    coded = np.empty((*labels.shape, *table.shape[1:]), table.dtype)
    for top in range(0, len(labels), _BAND):
        band = labels[top : top + _BAND]
        coded[top : top + _BAND] = table[np.where((band >= 0) & (band < len(category_ids)), band, -1)]
    return Image.fromarray(coded)


class EncodedMasks(Sequence):
    """Run-length encoded masks, decoded one at a time: each is an (H, W) array, every `step`-th row and column."""

    def __init__(self, encoded: Sequence[dict], step: int = 1):
        self.encoded, self.step = encoded, step

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index: int) -> np.ndarray:
        return rle.decode(self.encoded[index])[:: self.step, :: self.step].copy()


def segment_boxes(ids: np.ndarray) -> dict[int, tuple[slice, slice]]:
    """(H, W) segment ids, void below 0 → {id: the rows and columns it lies in}."""
    boxes: dict[int, tuple[slice, slice]] = {}
    for top in range(0, len(ids), _BAND):
        for number, found in enumerate(ndimage.find_objects(ids[top : top + _BAND].astype(np.int32) + 1)):
            if found is not None:
                rows, columns = found
                before = boxes.get(number, (slice(top + rows.start, 0), columns))
                columns = slice(min(before[1].start, columns.start), max(before[1].stop, columns.stop))
                boxes[number] = (slice(before[0].start, top + rows.stop), columns)
    return boxes
