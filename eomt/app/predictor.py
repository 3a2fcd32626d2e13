"""Photo → logits, kept, so that thresholds act without running the model again."""

import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from eomt.app.limits import Limits, open_upload
from eomt.app.models import ServedModel
from eomt.inference import post_process

KEPT_BYTES = 2**30
"""Of pictures and logits; the oldest go first."""


@dataclass
class Photo:
    """A picture and what a model said of it."""

    image: Image.Image
    outputs: SimpleNamespace

    @property
    def bytes(self) -> int:
        logits = (self.outputs.masks_queries_logits, self.outputs.class_queries_logits)
        return 3 * self.image.width * self.image.height + sum(x.numel() * x.element_size() for x in logits)


class Predictor:
    """Runs models on uploaded files; `runs` counts how often."""

    def __init__(self, models: dict[str, ServedModel], limits: Limits):
        self.models, self.limits, self.runs = models, limits, 0
        self._kept: OrderedDict[tuple[str, str], Photo] = OrderedDict()
        self._lock = threading.Lock()

    def model(self, name: str | None) -> ServedModel:
        """`ValueError` for a name that is not on the page; the first model for none."""
        if name and name not in self.models:
            raise ValueError(f"there is no model {name!r}; choose from {', '.join(self.models)}")
        return self.models[name or next(iter(self.models))]

    def photo(self, path: str | Path, name: str | None = None) -> Photo:
        """The picture with the model's logits; the model runs at the first call only."""
        served = self.model(name)
        key = (hashlib.sha256(Path(path).read_bytes()).hexdigest(), served.name)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        image = open_upload(path, self.limits)
        found = Photo(image, self._run(served, image))
        with self._lock:
            self.runs += 1
            self._kept[key] = found
            while len(self._kept) > 1 and sum(photo.bytes for photo in self._kept.values()) > KEPT_BYTES:
                self._kept.popitem(last=False)
        return found

    def _run(self, served: ServedModel, image: Image.Image) -> SimpleNamespace:
        model = served.load()
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

    score: float = 0.5
    "Panoptic: class probability that a query needs; instance: score of an instance."
    mask: float = 0.5
    "Probability from which a pixel belongs to a mask."
    overlap: float = 0.8
    "Panoptic: share of its mask that a segment must keep against the others."


def segments(served: ServedModel, photo: Photo, view: str, limits: Thresholds, size=None) -> dict:
    """Kept logits → the view's prediction at `size` (height, width), the picture's own by default.

    Raises:
        ValueError: for a view that the model's task does not have.
    """
    if view not in served.views:
        raise ValueError(f"{served.name} has no {view} view; choose from {', '.join(served.views)}")
    size = size or (photo.image.height, photo.image.width)
    task, rules = ("semantic" if view == "confidence" else view), {}
    if view == "panoptic":
        rules = {"threshold": limits.score, "overlap_mask_area_threshold": limits.overlap}
    if view in ("panoptic", "instance"):
        rules["mask_threshold"] = min(max(limits.mask, 1e-3), 1 - 1e-3)
    if view == "confidence":
        rules["confidence"] = True
    found = post_process(served.processor, photo.outputs, size, task, **rules)
    if view == "instance":
        keep = np.flatnonzero(found["scores"].numpy() >= limits.score).tolist()
        found |= {"masks": [found["masks"][k] for k in keep], "labels": found["labels"][keep]}
        found["scores"] = found["scores"][keep]
    return found
