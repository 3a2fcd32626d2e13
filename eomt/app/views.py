"""A prediction as the page shows it: the overlay, and under it a map of ids that names what the pointer is on."""

import base64
import html
import json
from io import BytesIO

import numpy as np
from PIL import Image
from pycocotools import mask as rle

from eomt.inference.prediction_files import EncodedMasks
from eomt.visualization import draw_confidence, draw_segments

SHOWN_SIDE = 1280
"""Longest side of a view (pixels)."""


def shown_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) of the view of a picture."""
    factor = min(1.0, SHOWN_SIDE / max(image.size))
    return max(1, round(image.height * factor)), max(1, round(image.width * factor))


def overlay(view: str, prediction: dict, image: Image.Image, id2label: dict) -> Image.Image:
    """Prediction at the picture's size → picture with its segments, or the heat map of the confidence."""
    if view == "confidence":
        return draw_confidence(prediction["confidence"].numpy())
    if view == "instance":
        info = [{"id": k, "label_id": c} for k, c in enumerate(prediction["labels"].tolist())]
        return draw_segments(image, EncodedMasks(prediction["masks"]), info, id2label)
    return draw_segments(image, prediction["segmentation"], prediction.get("segments_info"), id2label)


def named_map(view: str, prediction: dict, id2label: dict) -> tuple[np.ndarray, list[str]]:
    """→ (H, W, 3) uint8: number of the segment from 1 in red and green (0 is none), the pixel's confidence in blue;
    names of the segments, with their scores."""
    if view == "instance":
        scores, labels = prediction["scores"].tolist(), prediction["labels"].tolist()
        numbers = np.zeros(tuple(prediction["size"]), np.int64)
        for k in reversed(range(len(scores))):  # the best is on top
            numbers[rle.decode(prediction["masks"][k]).astype(bool)] = k + 1
        names = [f"{id2label[c]} {s:.2f}" for c, s in zip(labels, scores)]
    elif view == "panoptic":
        numbers = prediction["segmentation"].numpy().astype(np.int64) + 1
        names = [f"{id2label[s['label_id']]} {s['score']:.2f}" for s in prediction["segments_info"]]
    else:
        numbers = prediction["segmentation"].numpy().astype(np.int64) + 1
        names = [id2label[c] for c in range(len(id2label))]
    coded = np.stack([numbers % 256, numbers // 256, np.zeros_like(numbers)], -1).astype(np.uint8)
    if view == "confidence":
        coded[..., 2] = np.round(prediction["confidence"].numpy() * 255)
    return coded, names


def figure(title: str, view: str, prediction: dict, image: Image.Image, id2label: dict) -> str:
    """→ HTML; page.js names the segment under the pointer."""
    coded, names = named_map(view, prediction, id2label)
    picture = _data_url(overlay(view, prediction, image, id2label).convert("RGB"), "JPEG", quality=88)
    ids = _data_url(Image.fromarray(coded), "PNG")
    present = np.unique(coded[..., 0] + coded[..., 1].astype(int) * 256)
    listed = [names[k - 1] for k in present if k] if view in ("semantic", "confidence") else names
    said = ", ".join(listed) or "nothing above the threshold"
    return (
        f'<figure class="eomt-view" data-view="{view}" data-names="{html.escape(json.dumps(names))}">'
        f'<figcaption>{html.escape(title)}</figcaption><div class="eomt-picture">'
        f'<img class="eomt-overlay" src="{picture}" alt="{html.escape(said)}"><img class="eomt-ids" src="{ids}" alt="">'
        f'<output class="eomt-name"></output></div><p class="eomt-list">{html.escape(said)}</p></figure>'
    )


def message(text: str) -> str:
    return f'<p class="eomt-message" role="alert">{html.escape(text)}</p>' if text else ""


def _data_url(picture: Image.Image, kind: str, **options) -> str:
    buffer = BytesIO()
    picture.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
