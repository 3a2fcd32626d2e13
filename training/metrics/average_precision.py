"""Mask average precision: pycocotools' COCOeval, run image by image, so that no mask outlives its batch.

    n masks;  T = 10 IoU thresholds;  R = 101 recalls;  K classes;  A = 4 area ranges;  M = 3 detection limits

COCOeval first matches each (image, class, area range) alone, then pools scores and matches. The first half runs in
`add_batch` and leaves T bits a detection; the second in `compute`. Both are COCOeval's own code.
"""

import contextlib
import io

import numpy as np
import torch
from pycocotools import mask as coco_mask
from pycocotools.cocoeval import COCOeval

from ..rle import encode_masks, rle_areas
from .streaming import StreamingMetric, image_name

AREAS = ("", "small", "medium", "large")  # COCOeval's order: all, < 32², 32² … 96², > 96² pixels
MAX_DETECTIONS = 100


class MaskAveragePrecision(StreamingMetric):
    """AP and AR of masks as COCO defines them; fractions 0 … 1, −1 without ground truth, as in pycocotools.

    >>> metric = MaskAveragePrecision(num_labels=80)
    >>> metric.add_batch(predictions=[{"masks": masks, "labels": labels, "scores": scores}],
    ...                  references=[{"masks": masks, "labels": labels, "iscrowd": [0, 0]}])
    >>> metric.compute()["ap"]

    `masks`: bool (n, H, W), torch or numpy, or a list of n compressed RLEs. References may give `area` (the
    annotation's; default: the mask's pixels) and `image_id`, by which images are ordered and repeated ones refused.
    """

    description = "COCO mask average precision, equal to pycocotools'."

    def _empty(self) -> dict:
        return {"seen": set(), "images": []}

    def _add(self, prediction: dict, reference: dict) -> None:
        name = image_name(reference, prediction)
        key = reference.get("image_id")
        if key is not None and key in self.state["seen"]:
            raise ValueError(f"{name}was added twice")
        self.state["seen"].add(key)
        found = _masks(prediction, f"{name}prediction", self.num_labels, ("scores",))
        annotated = _masks(reference, f"{name}ground truth", self.num_labels, ("iscrowd", "area"))
        sizes = {tuple(rle["size"]) for rle in (*found["masks"], *annotated["masks"])}
        if len(sizes) > 1:
            raise ValueError(f"{name}masks of different sizes {sorted(sizes)} (H, W) in one image")
        self.state["images"].append((key, len(self.state["images"]), _match(found, annotated)))

    def _result(self, states: list[dict]) -> dict:
        images = [(key, number, rank, m) for rank, state in enumerate(states) for key, number, m in state["images"]]
        images.sort(key=lambda i: (0, i[0], 0) if isinstance(i[0], (int, np.integer)) else (1, str(i[0]), i[1], i[2]))
        evaluator = COCOeval(iouType="segm")
        parameters = evaluator.params
        parameters.imgIds = list(range(len(images)))
        labels = sorted({label for *_, matches in images for label in matches})
        parameters.catIds = labels or [0]
        evaluator.evalImgs = [
            None if label not in matches else _unpack(matches[label], area)
            for label in parameters.catIds
            for area in range(len(AREAS))
            for *_, matches in images
        ] or [None] * len(AREAS)
        evaluator._paramsEval = parameters
        with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
            evaluator.accumulate()
        precision, recall = evaluator.eval["precision"], evaluator.eval["recall"]  # [T, R, K, A, M], [T, K, A, M]
        result = {"ap": _mean(precision[..., 0, 2]), "ap_50": _mean(precision[0, ..., 0, 2])}
        result["ap_75"] = _mean(precision[5, ..., 0, 2])  # thresholds 0.5, 0.55, …
        result |= {f"ap_{name}": _mean(precision[..., a, 2]) for a, name in enumerate(AREAS) if name}
        result |= {f"ar_{limit}": _mean(recall[..., 0, m]) for m, limit in enumerate(parameters.maxDets)}
        result |= {f"ar_{name}": _mean(recall[..., a, 2]) for a, name in enumerate(AREAS) if name}
        result["per_class"] = {label: {"ap": -1.0, "ap_50": -1.0} for label in range(self.num_labels)}
        for k, label in enumerate(labels):
            p = precision[:, :, k, 0, 2]  # [T, R]
            result["per_class"][label] = {"ap": _mean(p), "ap_50": _mean(p[0])}
        return result


def _masks(entry: dict, what: str, num_labels: int, extras: tuple[str, ...]) -> dict:
    """Checked arrays of one image: masks as RLE, labels and the extras with one value each."""
    masks = entry["masks"]
    if not (isinstance(masks, (list, tuple)) and all(isinstance(m, dict) for m in masks)):
        masks = masks.detach().cpu().numpy() if isinstance(masks, torch.Tensor) else np.asarray(masks)
        if masks.size and masks.ndim != 3:
            raise ValueError(f"{what}: masks must be (n, H, W) or a list of RLEs, not of shape {masks.shape}")
        if masks.size and masks.dtype != bool and not np.isin(masks, (0, 1)).all():
            raise ValueError(f"{what}: masks must be bool, or 0 and 1; threshold them first")
        masks = encode_masks(masks)
    masks = [m if isinstance(m["counts"], bytes) else m | {"counts": str(m["counts"]).encode()} for m in masks]
    values = {"masks": masks, "labels": _numbers(entry["labels"]).astype(np.int64)}
    defaults = {"iscrowd": np.zeros(len(masks)), "area": rle_areas(masks)}
    for key in extras:
        given = entry.get(key)
        if given is None and key not in defaults:
            raise ValueError(f"{what}: it has no {key!r}")
        values[key] = defaults[key] if given is None else _numbers(given)
    for key, value in values.items():
        if len(value) != len(masks):
            raise ValueError(f"{what}: {len(value)} {key} for {len(masks)} masks")
    if not np.isfinite(values.get("scores", 0)).all():
        raise ValueError(f"{what}: a score is not a finite number")
    outside = (values["labels"] < 0) | (values["labels"] >= num_labels)
    if outside.any():
        raise ValueError(f"{what}: label {values['labels'][outside.argmax()]} is not in 0 … {num_labels - 1}")
    return values


def _numbers(value) -> np.ndarray:
    return value.detach().cpu().double().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def _match(found: dict, reference: dict) -> dict[int, list]:
    """One image by COCOeval: label → an entry an area range of (scores, matched, ignored, ignored ground truths)."""
    evaluator = COCOeval(iouType="segm")
    for i, (mask, label, score) in enumerate(zip(found["masks"], found["labels"].tolist(), found["scores"].tolist())):
        area = float(coco_mask.area(mask))
        evaluator._dts[0, label].append({"id": i + 1, "segmentation": mask, "score": score, "area": area})
    columns = (reference[key].tolist() for key in ("labels", "iscrowd", "area"))
    for i, (mask, label, crowd, area) in enumerate(zip(reference["masks"], *columns)):
        crowd = int(bool(crowd))
        entry = {"id": i + 1, "segmentation": mask, "area": area, "iscrowd": crowd, "ignore": crowd}
        evaluator._gts[0, label].append(entry)
    matches: dict[int, list] = {}
    for label in sorted({label for _, label in (*evaluator._dts, *evaluator._gts)}):
        evaluator.ious[0, label] = evaluator.computeIoU(0, label)
        matches[label] = []
        for area_range in evaluator.params.areaRng:
            r = evaluator.evaluateImg(0, label, area_range, MAX_DETECTIONS)
            packed = np.packbits(r["dtMatches"] > 0, axis=0), np.packbits(r["dtIgnore"] > 0, axis=0)  # [2, n] bytes
            matches[label].append((np.array(r["dtScores"]), *packed, np.asarray(r["gtIgnore"], bool)))
    return matches


def _unpack(entries: list, area: int) -> dict:
    """What `accumulate` reads of COCOeval's per-image result."""
    scores, matched, ignored, reference_ignored = entries[area]
    count = 10  # IoU thresholds
    return {
        "dtScores": scores,
        "dtMatches": np.unpackbits(matched, axis=0, count=count),
        "dtIgnore": np.unpackbits(ignored, axis=0, count=count).astype(bool),
        "gtIgnore": reference_ignored.astype(int),
    }


def _mean(values: np.ndarray) -> float:
    """COCOeval's summary: the mean of what is defined, −1 where nothing is."""
    values = values[values > -1]
    return float(values.mean()) if values.size else -1.0
