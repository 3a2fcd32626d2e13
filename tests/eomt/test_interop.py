"""`sv.Detections` from every kind of result."""

import numpy as np
import pytest
import torch
from pycocotools import mask as rle

pytest.importorskip("supervision")

from eomt.interop import to_detections

NAMES = {2: "cat", 5: "sky"}


def masks() -> np.ndarray:
    found = np.zeros((3, 20, 30), bool)
    found[0, 2:8, 3:10], found[1, 10:20, 0:30] = True, True  # the third is empty
    return found


def results():
    stack = masks()
    info = [{"id": k, "label_id": c, "score": s} for k, (c, s) in enumerate([(2, 0.9), (5, 0.7), (2, 0.1)])]
    ids = np.full((20, 30), -1)
    for k in (0, 1):
        ids[stack[k]] = k
    encoded = [rle.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in stack]
    scores = torch.tensor([0.9, 0.7, 0.1])
    yield "panoptic", {"segmentation": torch.from_numpy(ids), "segments_info": info}
    yield "binary maps", {"segmentation": torch.from_numpy(stack), "segments_info": info}
    yield "segment", {"size": (20, 30), "masks": encoded, "labels": torch.tensor([2, 5, 2]), "scores": scores}


@pytest.mark.parametrize(("kind", "result"), results(), ids=lambda value: value if isinstance(value, str) else "")
def test_results_become_detections(kind, result):
    found = to_detections(result, NAMES)
    assert np.array_equal(found.mask, masks()[:2])
    assert found.xyxy.tolist() == [[3, 2, 10, 8], [0, 10, 30, 20]]
    assert found.class_id.tolist() == [2, 5]
    assert found.confidence == pytest.approx([0.9, 0.7])
    assert found["class_name"].tolist() == ["cat", "sky"]


def test_empty_results_and_semantic_maps():
    assert len(to_detections({"segmentation": np.full((4, 4), -1), "segments_info": []})) == 0
    with pytest.raises(ValueError, match="semantic"):
        to_detections({"segmentation": np.zeros((4, 4))})
