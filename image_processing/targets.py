"""Training targets from segmentation maps: binary masks and class labels.

H, W map · n segments · S_h, S_w model input

A map is a label map (semantic), a map of instance ids with `instance_id_to_semantic_id`, or a map of segment ids with
`segments_info` (COCO panoptic: an RGB PNG, id = R + 256 G + 65536 B, 0 is void). Ids are resized, padded and cut, then
turned into masks. Padding and ignored pixels are in no mask.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..configuration.labels import IGNORE_INDEX, VOID
from .geometry import Placement, Size


def label_ids(
    ids: Tensor,
    *,
    segments_info: Sequence[Mapping] | None = None,
    instance_id_to_semantic_id: Mapping[int, int] | np.ndarray | None = None,
    ignore_index: int | None = None,
    do_reduce_labels: bool = False,
    num_labels: int | None = None,
) -> tuple[Tensor, dict[int, int]]:
    """The ids (H, W) with `VOID` at ignored pixels, and {id: class label} of the others.

    Args:
        segments_info: `{"id", "label_id" or "category_id", "iscrowd"}` per segment. Crowd segments are void, as in the
            authors' training.
        instance_id_to_semantic_id: class of each instance id, or an array indexed by it; ids 0 and `ignore_index` may
            be missing and are void.
        ignore_index: id of ignored pixels; 255 by default in plain label maps.
        do_reduce_labels: label 0 is background: ignored, and the others move down by one.
        num_labels: number of classes, to check the labels.
    """
    present = ids.unique().tolist()  # sorted
    if segments_info is not None:
        labels = _segment_labels([i for i in present if i != ignore_index], segments_info)
    elif instance_id_to_semantic_id is not None:
        if not hasattr(instance_id_to_semantic_id, "items"):  # an array
            instance_id_to_semantic_id = dict(enumerate(instance_id_to_semantic_id))
        mapping = {int(i): int(label) for i, label in instance_id_to_semantic_id.items()}
        unknown = [i for i in present if i not in mapping and i not in (0, ignore_index)]
        if unknown:
            raise ValueError(f"instance id {unknown[0]} of the map is missing from instance_id_to_semantic_id")
        labels = {i: mapping[i] for i in present if i in mapping and i != ignore_index}
    else:
        ignored = IGNORE_INDEX if ignore_index is None else ignore_index
        labels = {i: i for i in present if i != ignored}
    if do_reduce_labels:
        if instance_id_to_semantic_id is not None:
            labels.pop(0, None)  # id 0 of an instance map is background, of any class, as in Mask2Former
        labels = {i: label - 1 for i, label in labels.items() if label != 0}
    for i, label in labels.items():
        if label < 0 or (num_labels is not None and label >= num_labels):
            known = f"0..{num_labels - 1}" if num_labels is not None else "0, 1, …"
            raise ValueError(f"label {label} (id {i} of the map) is not one of {known}; set ignore_index or num_labels")
    void = torch.tensor([i for i in present if i not in labels], dtype=ids.dtype, device=ids.device)
    return ids.masked_fill(torch.isin(ids, void), VOID) if len(void) else ids, labels


def _segment_labels(present: list[int], segments_info: Sequence[Mapping]) -> dict[int, int]:
    labels, dropped = {}, set()
    for segment in segments_info:
        i = int(segment["id"])
        if i in labels or i in dropped:
            raise ValueError(f"segment id {i} is listed twice in segments_info")
        label = segment.get("label_id", segment.get("category_id"))
        if label is None:
            raise ValueError(f"segment id {i} has neither 'label_id' nor 'category_id' in segments_info")
        if segment.get("iscrowd"):
            dropped.add(i)
        else:
            labels[i] = int(label)
    unlisted = [i for i in present if i not in labels and i not in dropped and i != 0]
    if unlisted:
        raise ValueError(f"segment id {unlisted[0]} of the map is missing from segments_info")
    return {i: label for i, label in labels.items() if i in set(present)}


def place_map(ids: Tensor, placement: Placement) -> list[Tensor]:
    """Resize ids (H, W) of the original image by nearest pixel and cut one map per model input, padded with `VOID`."""
    ids = ids[nearest_index(ids.shape[0], placement.resized[0])][:, nearest_index(ids.shape[1], placement.resized[1])]
    return cut_inputs(ids, placement, VOID)


def cut_inputs(resized: Tensor, placement: Placement, padding: int) -> list[Tensor]:
    """Cut the model inputs (…, S_h, S_w) from a resized image or map, padded on the right and at the bottom."""
    height, width = placement.input_size
    inputs = []
    for top, left in placement.windows:
        part = resized[..., top : top + height, left : left + width]
        below, right = height - part.shape[-2], width - part.shape[-1]
        if below or right:
            part = torch.nn.functional.pad(part, (0, right, 0, below), value=padding)
        inputs.append(part)
    return inputs


def nearest_index(source: int, target: int) -> Tensor:
    """Source pixel under the center of each target pixel, as in Pillow's NEAREST: (target,) int64."""
    return ((2 * torch.arange(target) + 1) * source) // (2 * target)


def masks_and_labels(ids: Tensor, labels: Mapping[int, int]) -> tuple[Tensor, Tensor]:
    """Masks (n, H, W) bool in ascending order of the ids, and class labels (n,) int64; n can be 0."""
    present = ids.unique()
    present = present[present != VOID]  # [n], sorted
    masks = ids[None] == present[:, None, None]  # [n, H, W]
    return masks, torch.tensor([labels[i] for i in present.tolist()], dtype=torch.int64, device=ids.device)


def check_size(ids: Tensor, image_size: Size, name: str = "segmentation map") -> None:
    """Raise `ValueError` if a map does not have the size of its image."""
    if tuple(ids.shape) != tuple(image_size):
        raise ValueError(
            f"{name} of {ids.shape[0]} × {ids.shape[1]} pixels does not fit its image of "
            f"{image_size[0]} × {image_size[1]}; both must have the same size"
        )


def batch_targets(
    maps: Sequence[Tensor],
    placements: Sequence[Placement],
    segments_info=None,
    instance_id_to_semantic_id=None,
    **rules,
) -> tuple[list[Tensor], list[Tensor]]:
    """Masks (n, S_h, S_w) bool and labels (n,) for each model input of a batch.

    Args:
        maps: (H, W) ids of each image.
        segments_info, instance_id_to_semantic_id: one for each image, or one for a single image or for all.
        rules: the other arguments of `label_ids`.
    """
    count = len(placements)
    if segments_info is None:
        segments_info = [None] * count
    elif count == 1 and (len(segments_info) == 0 or isinstance(segments_info[0], Mapping)):
        segments_info = [segments_info]
    per_image = isinstance(instance_id_to_semantic_id, (list, tuple))
    mappings = instance_id_to_semantic_id if per_image else [instance_id_to_semantic_id] * count
    for name, given in (("segments_info", segments_info), ("mappings", mappings)):
        if len(given) != count:
            raise ValueError(f"{len(given)} {name} for {count} images; give one for each image")
    masks, labels = [], []
    for i, (ids, place) in enumerate(zip(maps, placements)):
        check_size(ids, place.original, f"segmentation map {i}")
        ids, classes = label_ids(ids, segments_info=segments_info[i], instance_id_to_semantic_id=mappings[i], **rules)
        for part in place_map(ids, place):
            part_masks, part_labels = masks_and_labels(part, classes)
            masks.append(part_masks)
            labels.append(part_labels)
    return masks, labels
