"""Mean IoU from one confusion matrix over the data set.

H, W image · C classes
"""

import numpy as np

from ...configuration.labels import IGNORE_INDEX
from .streaming import StreamingMetric, image_name, integer_map, same_size


class MeanIoU(StreamingMetric):
    """Mean IoU, accuracies and IoU per category: fractions 0 … 1.

    >>> metric = MeanIoU(num_labels=19, ignore_index=255)
    >>> metric.add_batch(predictions=[labels], references=[labels])  # integer maps (H, W), torch or numpy
    >>> metric.compute()["mean_iou"]

    Pixels with ground truth `ignore_index` do not count. Elsewhere, `ignore_index` as a prediction is a miss. Other
    values outside 0 … C−1 raise `ValueError`. A category without predicted and true pixels has IoU nan and is left out
    of the mean. `compute` stores the matrix in `confusion`: int64 (C, C + 1), true × predicted, last column "none".
    """

    description = "Mean intersection over union from one confusion matrix."

    def __init__(self, *, num_labels: int, ignore_index: int = IGNORE_INDEX, **kwargs):
        self.ignore_index = ignore_index
        self.confusion: np.ndarray | None = None
        super().__init__(num_labels=num_labels, **kwargs)

    def _empty(self) -> np.ndarray:
        return np.zeros((self.num_labels, self.num_labels + 1), np.int64)

    def _add(self, prediction, reference) -> None:
        self.state += confusion(prediction, reference, self.num_labels, self.ignore_index)

    def _result(self, states: list[np.ndarray]) -> dict:
        self.confusion = np.sum(states, 0)
        return iou_from_confusion(self.confusion)


def confusion(prediction, reference, num_labels: int, ignore_index: int, skip: np.ndarray | None = None) -> np.ndarray:
    """Confusion matrix int64 (C, C + 1), true × predicted, of two label maps (H, W).

    Pixels in `skip`, bool (H, W), do not count. Raises `ValueError` for labels that are neither 0 … C−1 nor
    `ignore_index`.
    """
    name = image_name(reference, prediction)
    maps = [entry["segmentation"] if isinstance(entry, dict) else entry for entry in (prediction, reference)]
    predicted, true = integer_map(maps[0], f"{name}prediction"), integer_map(maps[1], f"{name}ground truth")
    same_size(predicted.shape, true.shape, name)
    counts = true != ignore_index  # [H, W]
    if skip is not None:
        counts &= ~skip
    predicted, true = predicted[counts].astype(np.int64), true[counts].astype(np.int64)  # [pixels]
    for what, values in (("prediction", predicted), ("ground truth", true)):
        outside = (values < 0) | (values >= num_labels)
        if what == "prediction":
            outside &= values != ignore_index
        if outside.any():
            value = values[outside.argmax()]
            raise ValueError(
                f"{name}{what}: label {value} is not in 0 … {num_labels - 1}, nor ignore_index {ignore_index}"
            )
    predicted[(predicted < 0) | (predicted >= num_labels)] = num_labels  # ignore_index
    count = np.bincount(true * (num_labels + 1) + predicted, minlength=num_labels * (num_labels + 1))
    return count.reshape(num_labels, num_labels + 1)


def iou_from_confusion(matrix: np.ndarray) -> dict:
    """Mean IoU, mean and overall accuracy, IoU and accuracy per category, of a confusion matrix int64 (C, C + 1)."""
    hits = np.diagonal(matrix).astype(np.float64)  # [C]
    true, predicted = matrix.sum(1), matrix.sum(0)[:-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        iou, accuracy = hits / (true + predicted - hits), hits / true
        overall = hits.sum() / matrix.sum()

    def mean(values):
        return float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")

    return {
        "mean_iou": mean(iou),
        "mean_accuracy": mean(accuracy),
        "overall_accuracy": float(overall),
        "per_category_iou": iou.tolist(),
        "per_category_accuracy": accuracy.tolist(),
    }
