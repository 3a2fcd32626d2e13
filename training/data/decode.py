"""A row → pixels: the image and its target, as one id map (panoptic, semantic) or as RLEs (instance).

H, W image size · n segments
"""

import json
from dataclasses import dataclass, field

import numpy as np
import torch
from pycocotools import mask as coco_mask

from ...configuration.labels import VOID, LabelSpace
from ...image_processing.rle import encode_masks, rle_areas
from .images import distinct_values, read_classes, read_image, read_map
from .polygons import to_rle
from .readers.ade20k import panoptic_map
from .readers.coco import BACKGROUND

MAX_TABLE = 1 << 16  # smaller ids are looked up in a table, others by bisection


@dataclass
class Sample:
    """One decoded row. `segments`: {"id", "label_id", "iscrowd", …}; `ids`: int32 (H, W), the pixels' ids among them
    (semantic: their labels), VOID where unlabeled; `rles` instead, one a segment, for instances, which may overlap."""

    image: torch.Tensor  # uint8 (3, H, W)
    segments: list[dict] = field(default_factory=list)
    ids: np.ndarray | None = None
    rles: list[dict] | None = None


def decode(row: dict, space: LabelSpace) -> Sample:
    """Read a row's files. `ValueError` naming the file: unreadable, of another size, or with ids it must not hold."""
    name = row["file_name"]
    ids = _read_ids(row, name) if row["annotation"] else None
    said = tuple(row["size"]) or (None if ids is None else ids.shape)
    image = read_image(row["image"], name, said)
    size = tuple(image.shape[1:])
    if row["size"] and said != size:
        raise ValueError(f"{name}: its annotation is for {_size(said)} pixels, the image has {_size(size)}")
    segments = [dict(s) for s in row["segments"]]
    if row["layout"] in ("instance", "instance_as_semantic"):
        rles = [_rle(s, size, name) for s in segments]
        for rle, s in zip(rles, segments):
            if tuple(rle["size"]) != size:
                raise ValueError(
                    f"{name}: the mask of annotation {s['id']} is {_size(rle['size'])}, the image {_size(size)}"
                )
        if row["layout"] == "instance":
            return Sample(image, segments, rles=rles)
        return _semantic_sample(image, _painted(segments, rles, size, space))
    if row["layout"] == "ade20k_panoptic":
        ids, segments = panoptic_map(
            _sized(ids, size, name), _sized(read_map(row["things"], name), size, name), space, name
        )
        return Sample(image, segments, ids=ids)
    if ids is None:
        empty = np.full(size, VOID, np.int32)
        return Sample(image, [], rles=[]) if row["layout"] == "panoptic_as_instance" else Sample(image, [], ids=empty)
    ids = _sized(ids, size, name)
    if row["layout"] in ("semantic", "semantic_colors"):
        return _semantic_sample(image, to_labels(ids, space, name))
    if row["layout"] == "panoptic_as_instance":  # the png has stuff, too, which is not listed
        return Sample(image, segments, rles=encode_masks(ids == s["id"] for s in segments))
    listed = {s["id"] for s in segments}
    unlisted = [i for i in distinct_values(ids) if i not in listed and i != 0]
    if unlisted:
        raise ValueError(f"{name}: its panoptic png has id {unlisted[0]}, which is not in segments_info")
    if row["layout"] == "panoptic_as_semantic":
        labels = {s["id"]: s["label_id"] for s in segments} | {0: VOID}
        values, places = np.unique(ids, return_inverse=True)
        by_place = np.array([labels[i] for i in values.tolist()], np.int32)
        return _semantic_sample(image, by_place[places].reshape(size))
    ids[ids == 0] = VOID
    return Sample(image, segments, ids=ids)


def _semantic_sample(image: torch.Tensor, labels: np.ndarray) -> Sample:
    """A map of labels (H, W), VOID where unlabeled → one segment a class."""
    segments = [{"id": i, "label_id": i, "iscrowd": 0} for i in distinct_values(labels) if i != VOID]
    return Sample(image, segments, ids=labels)


def _painted(segments: list[dict], rles: list[dict], size: tuple[int, int], space: LabelSpace) -> np.ndarray:
    """Instances → labels (H, W): the smaller object lies above the larger one, the background below all."""
    labels = np.full(size, space.label2id[BACKGROUND], np.int32)
    for i in np.argsort(-rle_areas(rles), kind="stable"):
        labels[coco_mask.decode(rles[i]).astype(bool)] = segments[i]["label_id"]
    return labels


def _read_ids(row: dict, name: str) -> np.ndarray:
    if row["layout"].startswith("semantic"):
        return read_classes(row["annotation"], name, row["layout"] == "semantic_colors")
    return read_map(row["annotation"], name)


def _rle(segment: dict, size: tuple[int, int], name: str) -> dict:
    """A segment's shape, which is taken out of it, as an RLE."""
    try:
        return to_rle(json.loads(segment.pop("shape")), *size)
    except ValueError as error:
        raise ValueError(f"{name}: annotation {segment['id']}: {error}") from None


def to_labels(values: np.ndarray, space: LabelSpace, name: str) -> np.ndarray:
    """Dataset ids (H, W) → labels int32 (H, W), VOID where unlabeled; an id that is neither is an error."""
    known = dict.fromkeys((*space.ignored_ids, space.ignore_index), VOID) | dict(space.dataset_id_to_label)
    known = {i: label for i, label in known.items() if i >= 0}  # negative: a class this data set does not have
    ids = np.array(sorted(known), np.int64)
    labels = np.array([known[i] for i in ids.tolist()], np.int32)
    top = int(ids[-1])
    if top < MAX_TABLE and values.min(initial=0) >= 0 and values.max(initial=0) <= top:
        table = np.full(top + 1, -2, np.int32)
        table[ids] = labels
        found = table[values]
        if not (found == -2).any():
            return found
    else:  # ids that are colors
        place = np.minimum(np.searchsorted(ids, values), len(ids) - 1)
        if (ids[place] == values).all():
            return labels[place]
    wrong = next(v for v in distinct_values(values) if v not in known)
    raise ValueError(
        f"{name}: its label image has the value {wrong}, which is neither a class nor ignored; correct it, or add it "
        "to the class names or the ignored ids"
    )


def _sized(ids: np.ndarray, size: tuple[int, int], name: str) -> np.ndarray:
    if ids.shape != size:
        raise ValueError(
            f"{name}: its mask is {_size(ids.shape)}, the image {_size(size)} (height × width); they must agree"
        )
    return ids


def _size(size) -> str:
    return f"{size[0]}×{size[1]}"
