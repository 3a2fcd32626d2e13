"""Mask average precision: COCOeval of pycocotools, run image by image, so that no mask is kept.

n masks · T = 10 IoU thresholds · R = 101 recalls · K classes · A = 4 area ranges · M = 3 detection limits

COCOeval matches each (image, class, area range) independently, then pools scores and matches. `add_batch` runs its
matching and keeps T bits per detection. `compute` runs its pooling, one class at a time.
"""

import contextlib
import io
from dataclasses import dataclass

import numpy as np
import torch
from pycocotools import mask as coco_mask
from pycocotools.cocoeval import COCOeval

from ...image_processing.rle import encode_masks, rle_areas
from .streaming import StreamingMetric, as_array, image_name

AREAS = ("", "small", "medium", "large")  # in the order of COCOeval: all, < 32², 32² … 96², > 96² pixels
LIMITS = (1, 10, 100)  # detections per image and class
THRESHOLDS = 10  # of IoU: 0.5, 0.55, …


class MaskAveragePrecision(StreamingMetric):
    """COCO AP and AR of masks: fractions 0 … 1, −1 without ground truth, as in pycocotools.

    >>> metric = MaskAveragePrecision(num_labels=80)
    >>> metric.add_batch(predictions=[{"masks": masks, "labels": labels, "scores": scores}],
    ...                  references=[{"masks": masks, "labels": labels, "iscrowd": [0, 0]}])
    >>> metric.compute()["ap"]

    `masks`: bool (n, H, W), torch or numpy, or a list of n compressed RLEs. References can have `area` in pixels (of
    the annotation; default: pixels of the mask) and `image_id`, by which images are sorted. A repeated `image_id`,
    masks of different sizes and labels outside 0 … K−1 raise `ValueError`.
    """

    description = "COCO mask average precision, equal to pycocotools."

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
        images.sort(key=_order)
        labels = sorted({label for *_, matches in images for label in matches})
        pooled = [[matches[label] for *_, matches in images if label in matches] for label in labels]
        curves = [_accumulate(matches) for matches in pooled or [[]]]  # [[]]: without labels, all values are −1
        precision, recall = (np.concatenate(parts, axis=-3) for parts in zip(*curves))  # [T, R, K, A, M], [T, K, A, M]
        result = {"ap": _mean(precision[..., 0, 2]), "ap_50": _mean(precision[0, ..., 0, 2])}
        result["ap_75"] = _mean(precision[5, ..., 0, 2])  # thresholds 0.5, 0.55, …
        result |= {f"ap_{name}": _mean(precision[..., a, 2]) for a, name in enumerate(AREAS) if name}
        result |= {f"ar_{limit}": _mean(recall[..., 0, m]) for m, limit in enumerate(LIMITS)}
        result |= {f"ar_{name}": _mean(recall[..., a, 2]) for a, name in enumerate(AREAS) if name}
        result["per_class"] = {label: {"ap": -1.0, "ap_50": -1.0} for label in range(self.num_labels)}
        for k, label in enumerate(labels):
            p = precision[:, :, k, 0, 2]  # [T, R]
            result["per_class"][label] = {"ap": _mean(p), "ap_50": _mean(p[0])}
        return result


@dataclass(frozen=True, slots=True)
class _Matches:
    """Matches of one label in one image: the best n ≤ 100 detections, with one bit per IoU threshold."""

    scores: np.ndarray  # (n,) float64, descending
    matched: np.ndarray  # (A, 2, n) uint8: T bits
    ignored: np.ndarray  # (A, 2, n) uint8: T bits
    references: np.ndarray  # (A,) number of ground truth masks without crowds, in each area range


def _order(image: tuple) -> tuple:
    """Sort key: images with integer ids by id, as in COCOeval; then others, by name and order of addition."""
    key, number, rank, _ = image
    if isinstance(key, (int, np.integer)):
        return 0, key, 0
    return 1, str(key), number, rank


def _accumulate(matches: list[_Matches]) -> tuple[np.ndarray, np.ndarray]:
    """Precision (T, R, 1, A, M) and recall (T, 1, A, M) of one label from its matches in all images.

    All images are passed to COCOeval as one, which has the same sums with far fewer calls. COCOeval limits the
    detections of each image, so that is done before, with one run of COCOeval per limit.
    """
    bits = np.zeros((len(AREAS), 2, 0), np.uint8)
    empty = _Matches(np.zeros(0), bits, bits, np.zeros(len(AREAS), int))
    matches = [empty, *matches]  # so that there is at least one array to concatenate
    references = sum(m.references for m in matches)
    limited = []
    for limit in LIMITS:
        scores = np.concatenate([m.scores[:limit] for m in matches])
        matched = np.concatenate([m.matched[..., :limit] for m in matches], axis=-1)
        ignored = np.concatenate([m.ignored[..., :limit] for m in matches], axis=-1)
        evaluator = COCOeval(iouType="segm")
        params = evaluator._paramsEval = evaluator.params
        params.imgIds, params.catIds, params.maxDets = [0], [0], [max(1, len(scores))]
        evaluator.evalImgs = [
            {
                "dtScores": scores,
                "dtMatches": np.unpackbits(matched[a], axis=0, count=THRESHOLDS),
                "dtIgnore": np.unpackbits(ignored[a], axis=0, count=THRESHOLDS).astype(bool),
                "gtIgnore": np.zeros(references[a], int),  # without ignored ground truth, which does not count
            }
            for a in range(len(AREAS))
        ]
        with contextlib.redirect_stdout(io.StringIO()):  # hide its progress messages
            evaluator.accumulate()
        limited.append((evaluator.eval["precision"], evaluator.eval["recall"]))
    return tuple(np.concatenate(parts, axis=-1) for parts in zip(*limited))


def _masks(entry: dict, what: str, num_labels: int, extras: tuple[str, ...]) -> dict:
    """Checked entries of one image: masks as RLE, labels and the extras."""
    masks = entry["masks"]
    if not (isinstance(masks, (list, tuple)) and all(isinstance(m, dict) for m in masks)):
        masks = as_array(masks)
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
    return as_array(value.double() if isinstance(value, torch.Tensor) else value)  # numpy has no bfloat16


def _match(found: dict, reference: dict) -> dict[int, _Matches]:
    """{label: matches} of one image, by COCOeval."""
    evaluator = COCOeval(iouType="segm")
    for i, (mask, label, score) in enumerate(zip(found["masks"], found["labels"].tolist(), found["scores"].tolist())):
        area = float(coco_mask.area(mask))
        evaluator._dts[0, label].append({"id": i + 1, "segmentation": mask, "score": score, "area": area})
    columns = (reference[key].tolist() for key in ("labels", "iscrowd", "area"))
    for i, (mask, label, crowd, area) in enumerate(zip(reference["masks"], *columns)):
        crowd = int(bool(crowd))
        entry = {"id": i + 1, "segmentation": mask, "area": area, "iscrowd": crowd, "ignore": crowd}
        evaluator._gts[0, label].append(entry)
    matches = {}
    for label in {label for _, label in (*evaluator._dts, *evaluator._gts)}:
        evaluator.ious[0, label] = evaluator.computeIoU(0, label)
        areas = [evaluator.evaluateImg(0, label, r, LIMITS[-1]) for r in evaluator.params.areaRng]
        matches[label] = _Matches(
            scores=np.array(areas[0]["dtScores"], np.float64),
            matched=np.packbits([r["dtMatches"] > 0 for r in areas], axis=1),
            ignored=np.packbits([r["dtIgnore"] > 0 for r in areas], axis=1),
            references=np.array([np.count_nonzero(np.asarray(r["gtIgnore"]) == 0) for r in areas]),
        )
    return matches


def _mean(values: np.ndarray) -> float:
    """The mean of defined values, −1 if there are none, as in COCOeval."""
    values = values[values > -1]
    return float(values.mean()) if values.size else -1.0
