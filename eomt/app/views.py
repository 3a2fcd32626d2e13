"""A prediction as the page shows it: the overlay, a map of ids that names what the pointer is on, and a legend.

The map is (H, W, 3) uint8, H, W the view: a segment's number from 1 in red and green (0 is none), a pixel's
confidence in blue. page.js reads it.
"""

import base64
import html
import json
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image
from pycocotools import mask as rle

from ..visualization import draw_confidence, draw_prediction


@dataclass(frozen=True)
class NamedSegment:
    """One segment of a view."""

    number: int
    "In the map of ids."
    label: int
    name: str
    score: float | None
    "None of a semantic class."

    def __str__(self) -> str:
        return self.name if self.score is None else f"{self.name} {self.score:.2f}"


def named_segments(view: str, prediction: Mapping, id2label: Mapping[int, str]) -> list[NamedSegment]:
    """The segments of a view, in the order of the prediction; of a semantic one the classes that are present."""
    if view == "instance":
        found = zip(prediction["labels"].tolist(), prediction["scores"].tolist())
        return [NamedSegment(k, c, id2label[c], score) for k, (c, score) in enumerate(found, 1)]
    if view == "panoptic":
        info = prediction["segments_info"]
        return [NamedSegment(s["id"] + 1, s["label_id"], id2label[s["label_id"]], s["score"]) for s in info]
    present = prediction["segmentation"].unique().tolist()
    return [NamedSegment(c + 1, c, id2label[c], None) for c in present if c >= 0]


def overlay(view: str, prediction: Mapping, image: Image.Image, id2label: Mapping, colors=None) -> Image.Image:
    """Prediction at the picture's size → picture with its segments, or the heat map of the confidence."""
    if view == "confidence":
        return draw_confidence(prediction["confidence"].numpy())
    return draw_prediction(image, prediction, id2label, colors=colors)


def id_map(view: str, prediction: Mapping) -> np.ndarray:
    """Prediction → (H, W, 3), see above."""
    if view == "instance":
        numbers = np.zeros(tuple(prediction["size"]), np.int64)
        for k in reversed(range(len(prediction["masks"]))):  # the best is on top
            numbers[rle.decode(prediction["masks"][k]).astype(bool)] = k + 1
    else:
        numbers = prediction["segmentation"].numpy().astype(np.int64) + 1
    coded = np.stack([numbers % 256, numbers // 256, np.zeros_like(numbers)], -1).astype(np.uint8)
    if view == "confidence":
        coded[..., 2] = np.round(prediction["confidence"].numpy() * 255)
    return coded


def figure(title: str, view: str, prediction: Mapping, image: Image.Image, id2label: Mapping, colors: Mapping) -> str:
    """→ HTML. `colors`: {label: (r, g, b)}, the same for figures side by side."""
    found = named_segments(view, prediction, id2label)
    picture = _data_url(overlay(view, prediction, image, id2label, colors).convert("RGB"), "JPEG", quality=88)
    ids = _data_url(Image.fromarray(id_map(view, prediction)), "PNG", compress_level=1)
    names = html.escape(json.dumps({segment.number: str(segment) for segment in found}))
    said = html.escape(", ".join(map(str, found)) or "no segments")
    legend = _confidence_legend() if view == "confidence" else _legend(found, colors)
    shape = f"aspect-ratio: {image.width} / {image.height}; --ratio: {image.width / image.height:.4f}"
    return (
        f'<figure class="eomt-view" data-view="{view}" data-names="{names}"><figcaption>{html.escape(title)}'
        f'</figcaption><div class="eomt-picture" style="{shape}"><img class="eomt-overlay" src="{picture}" '
        f'alt="{view}: {said}"><canvas class="eomt-veil"></canvas><img class="eomt-ids" src="{ids}" alt="">'
        f'<output class="eomt-name"></output></div>{legend}</figure>'
    )


def problem(title: str, text: str) -> str:
    """In place of a figure."""
    return f'<figure class="eomt-view"><figcaption>{html.escape(title)}</figcaption>{message(text)}</figure>'


def message(text: str) -> str:
    return f'<p class="eomt-message" role="alert">{html.escape(text)}</p>' if text else ""


def _legend(found: list[NamedSegment], colors: Mapping) -> str:
    """A chip for each class, most segments first; pointing at it shows where the class is."""
    if not found:
        return '<p class="eomt-none">Nothing scores above the threshold: lower it to see less likely segments.</p>'
    classes: dict[int, list[NamedSegment]] = {}
    for segment in found:
        classes.setdefault(segment.label, []).append(segment)
    chips = []
    for label, members in sorted(classes.items(), key=lambda row: -len(row[1])):
        numbers = " ".join(str(segment.number) for segment in members)
        text = html.escape(f"{members[0].name} × {len(members)}" if len(members) > 1 else str(members[0]))
        color = "rgb({}, {}, {})".format(*colors[label])
        chips.append(f'<li tabindex="0" data-numbers="{numbers}"><span style="background: {color}"></span>{text}</li>')
    return f'<ul class="eomt-legend" aria-label="classes">{"".join(chips)}</ul>'


def _confidence_legend() -> str:
    return '<p class="eomt-scale"><span>unsure</span><span class="eomt-heat"></span><span>sure</span></p>'


def _data_url(picture: Image.Image, kind: str, **options) -> str:
    buffer = BytesIO()
    picture.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
