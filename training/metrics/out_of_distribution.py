"""Out-of-distribution segmentation as in BRAVO (paper Tab. 8, App. E).

H, W image · L = 65536 confidence levels

It measures segmentation by the mean IoU over in-distribution pixels, and confidence by the average precision of
detecting invalid pixels with the score 1 − confidence.
"""

import numpy as np

from ...configuration.labels import IGNORE_INDEX
from .mean_iou import confusion, iou_from_confusion
from .streaming import StreamingMetric, as_array, image_name

LEVELS = 1 << 16  # BRAVO stores confidence as uint16: floor(confidence · 65535)


class OutOfDistribution(StreamingMetric):
    """Results {"mean_iou", "auprc", "per_category_iou", …}: fractions 0 … 1.

    >>> metric = OutOfDistribution(num_labels=19)
    >>> metric.add_batch(predictions=[{"segmentation": labels, "confidence": confidence}],
    ...                  references=[{"segmentation": labels, "invalid": invalid}])

    `confidence`: float (H, W), clipped to 0 … 1, or BRAVO's uint16. `invalid`: (H, W), nonzero for objects of unknown
    classes. Pixels with ground truth `ignore_index` do not count. `pixels` in a reference: flat indices of a sample of
    pixels for AUPRC (BRAVO: ≤ 100,000 per image; default: all). AUPRC is Σ Δrecall · precision over descending scores,
    with equal scores as one step; nan without invalid pixels.
    """

    description = "Mean IoU over in-distribution pixels and AUPRC of out-of-distribution ones."

    def __init__(self, *, num_labels: int, ignore_index: int = IGNORE_INDEX, **kwargs):
        self.ignore_index = ignore_index
        super().__init__(num_labels=num_labels, **kwargs)

    def _empty(self) -> dict[str, np.ndarray]:
        matrix = np.zeros((self.num_labels, self.num_labels + 1), np.int64)
        return {"confusion": matrix, "levels": np.zeros((2, LEVELS), np.int64)}  # valid, invalid pixels per level

    def _add(self, prediction: dict, reference: dict) -> None:
        name = image_name(reference, prediction)
        invalid = as_array(reference["invalid"]) != 0  # [H, W]
        level = confidence_levels(prediction["confidence"])  # [H, W]
        true = as_array(reference["segmentation"])
        if not invalid.shape == level.shape == true.shape:
            shapes = f"invalid {invalid.shape}, confidence {level.shape}, ground truth {true.shape}"
            raise ValueError(f"{name}maps of different sizes (H, W): {shapes}")
        arguments = (self.num_labels, self.ignore_index)
        self.state["confusion"] += confusion(prediction, reference, *arguments, skip=invalid)
        counts = (true != self.ignore_index).ravel()
        if reference.get("pixels") is not None:
            sample = np.zeros_like(counts)
            sample[as_array(reference["pixels"])] = True
            counts &= sample
        code = invalid.ravel()[counts] * LEVELS + level.ravel()[counts]
        self.state["levels"] += np.bincount(code, minlength=2 * LEVELS).reshape(2, LEVELS)

    def _result(self, states: list[dict]) -> dict:
        levels = np.sum([state["levels"] for state in states], 0)
        result = iou_from_confusion(np.sum([state["confusion"] for state in states], 0))
        return result | {"auprc": average_precision(levels), "invalid_pixels": int(levels[1].sum())}


def confidence_levels(confidence) -> np.ndarray:
    """Levels 0 … 65535, int64 (H, W), of float confidences, clipped to 0 … 1, or of integers, which are levels."""
    confidence = as_array(confidence)
    if confidence.dtype.kind in "iu":
        return confidence.astype(np.int64)
    return np.floor(confidence.clip(0, 1).astype(np.float64) * (LEVELS - 1)).astype(np.int64)


def average_precision(levels: np.ndarray) -> float:
    """AP of detecting invalid pixels by 1 − confidence, from the valid and invalid pixels per level (2, L)."""
    negatives, positives = np.cumsum(levels, 1)  # the lowest confidence comes first
    if not positives[-1]:
        return float("nan")
    precision = positives / np.maximum(positives + negatives, 1)  # [L]
    return float((np.diff(positives, prepend=0) * precision).sum() / positives[-1])
