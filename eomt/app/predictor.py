"""Photo → logits, kept, so that thresholds act without running the model again."""

import hashlib
import threading
from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace

import torch
from PIL import Image

from ..configuration import TASK_ROWS
from ..image_processing.inference import confident_instances, predict_image
from .limits import Limits, open_upload
from .models import ServedModel

KEPT_BYTES = 2**30
"""Of pictures and logits; the oldest go first."""
SHOWN_SIDE = 1280
"""Longest side of a view (pixels)."""


@dataclass
class Photo:
    """A picture and what a model said of it."""

    image: Image.Image
    outputs: SimpleNamespace

    @cached_property
    def shown(self) -> Image.Image:
        """The picture at the size of a view."""
        factor = min(1.0, SHOWN_SIDE / max(self.image.size))
        size = [max(1, round(side * factor)) for side in self.image.size]
        return self.image.resize(size, reducing_gap=2.0) if factor < 1 else self.image

    @property
    def bytes(self) -> int:
        logits = (self.outputs.masks_queries_logits, self.outputs.class_queries_logits)
        return 3 * self.image.width * self.image.height + sum(x.numel() * x.element_size() for x in logits)


class Predictor:
    """Runs models on uploaded files; `runs` counts how often."""

    def __init__(self, models: dict[str, ServedModel], limits: Limits):
        self.models, self.limits, self.runs = models, limits, 0
        self._kept: OrderedDict[tuple[str, str], Future[Photo]] = OrderedDict()
        self._lock = threading.Lock()

    def model(self, name: str | None) -> ServedModel:
        """`ValueError` for a name that is not on the page; the first model for none."""
        if name and name not in self.models:
            raise ValueError(f"there is no model {name!r}; choose from {', '.join(self.models)}")
        return self.models[name or next(iter(self.models))]

    def photo(self, path: str | Path, name: str | None = None) -> Photo:
        """The picture with the model's logits; the model runs at the first call only, also when two come at once.

        Raises:
            ValueError: one line for the visitor, for a file that is not a picture, too large or deleted since.
        """
        served = self.model(name)
        try:
            key = (hashlib.sha256(Path(path).read_bytes()).hexdigest(), served.name)
        except FileNotFoundError:
            raise ValueError(f"{Path(path).name} is no longer on the server; add it again") from None
        with self._lock:
            future, is_new = self._kept.get(key), key not in self._kept
            if is_new:
                future = self._kept[key] = Future()
            self._kept.move_to_end(key)
        if is_new:
            self._fill(future, key, path, served)
        return future.result()

    def _fill(self, future: Future, key: tuple[str, str], path: str | Path, served: ServedModel) -> None:
        try:
            image = open_upload(path, self.limits)
            found = Photo(image, self._run(served, image))
        except BaseException as error:  # whoever waits for it gets the error; the next request tries again
            with self._lock:
                del self._kept[key]
            future.set_exception(error)
            return
        future.set_result(found)
        with self._lock:
            done = {key: kept.result().bytes for key, kept in self._kept.items() if kept.done()}
            total = sum(done.values())
            for oldest in list(done)[:-1]:
                if total <= KEPT_BYTES:
                    break
                total -= done[oldest]
                del self._kept[oldest]

    def _run(self, served: ServedModel, image: Image.Image) -> SimpleNamespace:
        model = served.load()
        with self._lock:
            self.runs += 1
        inputs = served.processor(image, return_tensors="pt")
        offsets = [tuple(int(v) for v in row) for row in inputs["patch_offsets"]] or None
        with torch.no_grad():
            outputs = model(pixel_values=inputs["pixel_values"].to(model.device), patch_offsets=offsets)
        return SimpleNamespace(
            masks_queries_logits=outputs.masks_queries_logits.cpu(),
            class_queries_logits=outputs.class_queries_logits.cpu(),
            patch_offsets=offsets,
        )


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """The sliders."""

    score: float | None = None
    "Panoptic: class probability that a query needs; instance: score of an instance. None: as `eomt predict` draws."
    mask: float = 0.5
    "Probability from which a pixel belongs to a mask."
    overlap: float = 0.8
    "Panoptic: share of its mask that a segment must keep against the others."


def default_score(view: str) -> float | None:
    """The threshold of a view, the same as `eomt predict`'s; None where it has none."""
    return TASK_ROWS[view].drawing_threshold if view in TASK_ROWS else None


def segments(served: ServedModel, photo: Photo, view: str, thresholds: Thresholds, size=None) -> dict:
    """Kept logits → the view's prediction at `size` (height, width), the picture's own by default.

    Raises:
        ValueError: for a view that the model's task does not have.
    """
    if view not in served.views:
        raise ValueError(f"{served.name} has no {view} view; choose from {', '.join(served.views)}")
    size = size or (photo.image.height, photo.image.width)
    task, rules = ("semantic" if view == "confidence" else view), {}
    score = default_score(view) if thresholds.score is None else thresholds.score
    if view == "panoptic":
        rules = {"threshold": score, "overlap_mask_area_threshold": thresholds.overlap}
    if view in ("panoptic", "instance"):
        rules["mask_threshold"] = min(max(thresholds.mask, 1e-3), 1 - 1e-3)
    if view == "confidence":
        rules["confidence"] = True
    found = predict_image(served.processor, photo.outputs, size, task, **rules)
    return confident_instances(found, score) if view == "instance" else found
