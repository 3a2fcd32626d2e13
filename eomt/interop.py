"""Conversion of results to `sv.Detections` of the package supervision, for drawing, tracking and counting.

from eomt.interop import to_detections
detections = to_detections(result, model.config.id2label)
"""

from collections.abc import Mapping

import numpy as np
import supervision as sv
from pycocotools import mask as rle


def to_detections(result: Mapping, id2label: Mapping[int, str] | None = None) -> sv.Detections:
    """Convert the result for one image to `sv.Detections`: masks (n, H, W), boxes, labels as `class_id`, scores.

    Args:
        result: of `post_process_panoptic_segmentation`, `post_process_instance_segmentation` (also with
            `return_binary_maps`) or `predict_image`.
        id2label: names for `detections["class_name"]`.

    Raises:
        ValueError: for a semantic map, which has no segments.
    """
    if "masks" in result:
        masks = [rle.decode(mask).astype(bool) for mask in result["masks"]]
        labels, scores = (np.asarray(result[key]) for key in ("labels", "scores"))
    elif "segments_info" in result:
        maps, info = np.asarray(result["segmentation"]), result["segments_info"]
        if maps.ndim == 3:  # one map for each instance
            masks = [mask.astype(bool) for mask in maps[: len(info)]]
        else:
            masks = [maps == s["id"] for s in info]
        labels, scores = np.array([s["label_id"] for s in info]), np.array([s.get("score", 1.0) for s in info])
    else:
        raise ValueError("a semantic map has no segments; give a panoptic or instance result")
    kept = [k for k, mask in enumerate(masks) if mask.any()]
    if not kept:
        return sv.Detections.empty()
    masks = np.stack([masks[k] for k in kept])
    labels = labels[kept].astype(int)
    names = {"class_name": np.array([id2label[label] for label in labels.tolist()])} if id2label else {}
    return sv.Detections(
        xyxy=sv.mask_to_xyxy(masks) + np.array([0.0, 0, 1, 1]),  # mask_to_xyxy has the last pixels, not the ends
        mask=masks,
        class_id=labels,
        confidence=scores[kept].astype(float),
        data=names,
    )
