"""Base of the metrics: an `evaluate.Metric` that keeps statistics instead of predictions, and sums over processes.

`add_batch` reduces a batch to statistics. `compute` sums them over the processes of an initialized torch.distributed
group (torchrun, accelerate, the Trainer) and returns the same result in every process. Counts are integers, so the
result is that of a single process. Nothing is downloaded or written.
"""

from collections.abc import Iterable

import datasets
import evaluate
import numpy as np
import torch

from ..processes import from_main, gather_on_main, in_group


class StreamingMetric(evaluate.Metric):
    """Subclasses define `description`, `_empty()`, `_add(prediction, reference)` and `_result(states) -> dict`.

    `self.state` is created by `_empty` and updated by `_add`. `_result` receives the states of all processes, by rank.
    """

    description = ""

    def __init__(self, *, num_labels: int, **kwargs):
        self.num_labels = num_labels
        super().__init__(**kwargs)
        if self.num_process > 1 and not in_group():
            raise ValueError(
                f"num_process={self.num_process} needs an initialized torch.distributed group (torchrun, accelerate)"
            )
        self.state = self._empty()

    def _build_data_dir(self) -> str:
        return self._data_dir_root  # `evaluate` would create a folder that is never used

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})
        return evaluate.MetricInfo(description=self.description, citation="", features=features, inputs_description="")

    # `evaluate` copies the next three methods without their closures, so they cannot call super().
    def add_batch(self, *, predictions: Iterable, references: Iterable) -> None:
        """Add a batch, with one prediction and one reference per image."""
        for prediction, reference in zip(predictions, references, strict=True):
            self._add(prediction, reference)

    def add(self, *, prediction, reference) -> None:
        """Add one image."""
        self._add(prediction, reference)

    def compute(self, *, predictions: Iterable | None = None, references: Iterable | None = None) -> dict:
        """The result over all images added in all processes. Resets the metric."""
        if predictions is not None or references is not None:
            self.add_batch(predictions=predictions or [], references=references or [])
        states = gather_on_main(self.state)
        self.state = self._empty()
        return from_main(lambda: self._result(states))

    def compute_image(self, prediction, reference) -> dict:
        """The result of one image, without the images added before and without other processes."""
        kept = self.state
        self.state = self._empty()
        try:
            self._add(prediction, reference)
            return self._result([self.state])
        finally:
            self.state = kept

    def _empty(self):
        raise NotImplementedError

    def _add(self, prediction, reference) -> None:
        raise NotImplementedError

    def _result(self, states: list) -> dict:
        raise NotImplementedError


def as_array(value) -> np.ndarray:
    """A numpy array of a tensor, array or list, without a copy if possible."""
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def integer_map(value, what: str) -> np.ndarray:
    """A numpy array (H, W) of a map of integers. Raises `ValueError` for other shapes and dtypes."""
    array = as_array(value)
    if array.ndim != 2:
        raise ValueError(f"{what} must be a map (H, W), not of shape {array.shape}")
    if array.dtype.kind not in "iu":
        raise ValueError(f"{what} must hold integers, not {array.dtype}")
    return array


def same_size(prediction: tuple, reference: tuple, what: str) -> None:
    if tuple(prediction) != tuple(reference):
        raise ValueError(
            f"{what}the prediction is {_size(prediction)}, its ground truth {_size(reference)}; resize it first"
        )


def image_name(*entries) -> str:
    """Prefix of error messages: the first `file_name` or `image_id` of the entries."""
    for entry in entries:
        for key in ("file_name", "image_id"):
            if isinstance(entry, dict) and entry.get(key) is not None:
                return f"image {entry[key]}: "
    return ""


def _size(shape) -> str:
    return "×".join(map(str, shape))
