"""Mask AP: all figures equal pycocotools' on the complete data set, and no mask is kept."""

import contextlib
import io
import pickle

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from eomt.training import MaskAveragePrecision

KEYS = ("ap", "ap_50", "ap_75", "ap_small", "ap_medium", "ap_large")
RECALL_KEYS = ("ar_1", "ar_10", "ar_100", "ar_small", "ar_medium", "ar_large")


def synthetic(seed, images=6, labels=3, detections=12, size=(150, 160)):
    """Predictions and ground truth: boxes of all sizes, crowds, wrong classes, equal scores, images without either."""
    rng = np.random.default_rng(seed)
    predictions, references = [], []
    for i in range(images):
        true = np.zeros((0 if i == 1 else 6, *size), bool)
        for mask in true:
            y, x, h, w = rng.integers(0, 90), rng.integers(0, 90), *rng.integers(6, 140, 2)
            mask[y : y + h, x : x + w] = True
        true = true[true.any((1, 2))]
        classes = rng.integers(0, labels, len(true))
        chosen = rng.integers(0, max(1, len(true)), 0 if i == 2 else detections)
        found = np.zeros((len(chosen), *size), bool)
        for mask, k in zip(found, chosen):
            if len(true) and rng.random() < 0.8:
                mask[:] = np.roll(true[k], rng.integers(-4, 5, 2), (0, 1))
            else:
                mask[10:30, 10 : 20 + 5 * k] = True
        guess = [classes[k] if len(true) and rng.random() < 0.8 else rng.integers(labels) for k in chosen]
        predictions.append({"masks": found, "labels": np.array(guess, int), "scores": rng.random(len(chosen)).round(1)})
        crowds = (rng.random(len(true)) < 0.2).astype(int)
        references.append({"masks": true, "labels": classes, "iscrowd": crowds})
    return predictions, references


def pycocotools_stats(predictions, references, labels):
    def rle(mask):
        return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))

    annotations, results = [], []
    for i, reference in enumerate(references):
        area = reference.get("area", reference["masks"].sum((1, 2)))
        for mask, label, crowd, a in zip(reference["masks"], reference["labels"], reference["iscrowd"], area):
            annotation = {"image_id": i, "category_id": int(label), "iscrowd": int(crowd), "area": float(a)}
            annotations.append(annotation | {"id": len(annotations) + 1, "segmentation": rle(mask)})
        p = predictions[i]
        for mask, label, score in zip(p["masks"], p["labels"], p["scores"]):
            results.append({"image_id": i, "category_id": int(label), "score": float(score), "segmentation": rle(mask)})
    coco = COCO()
    coco.dataset = {
        "images": [{"id": i, "height": 150, "width": 160} for i in range(len(references))],
        "annotations": annotations,
        "categories": [{"id": c} for c in range(labels)],
        "info": {},
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        evaluator = COCOeval(coco, coco.loadRes(results), "segm")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator


@pytest.mark.parametrize("seed", range(5))
def test_equals_pycocotools(seed):
    predictions, references = synthetic(seed)
    if seed == 3:  # the area in the ground truth decides the class of size
        for reference in references:
            reference["area"] = reference["masks"].sum((1, 2)) * 0.4
    metric = MaskAveragePrecision(num_labels=3)
    for i in range(0, 6, 2):
        metric.add_batch(predictions=predictions[i : i + 2], references=references[i : i + 2])
    result = metric.compute()
    expected = pycocotools_stats(predictions, references, 3)
    assert 0.05 < result["ap"] < 0.95
    assert [result[k] for k in (*KEYS, *RECALL_KEYS)] == pytest.approx(expected.stats.tolist(), abs=1e-12)
    for label in range(3):
        precision = expected.eval["precision"][:, :, label, 0, 2]
        assert result["per_class"][label]["ap"] == pytest.approx(precision[precision > -1].mean(), abs=1e-12)


def test_more_than_a_hundred_detections_of_a_class():
    predictions, references = synthetic(9, images=2, labels=1, detections=130)
    metric = MaskAveragePrecision(num_labels=1)
    metric.add_batch(predictions=predictions, references=references)
    assert metric.compute()["ap"] == pytest.approx(pycocotools_stats(predictions, references, 1).stats[0], abs=1e-12)


def test_masks_may_be_arrays_tensors_or_rles():
    predictions, references = synthetic(1)
    metric = MaskAveragePrecision(num_labels=3)
    metric.add_batch(predictions=predictions, references=references)
    expected = metric.compute()

    def tensors(entry):
        return {key: torch.from_numpy(np.asarray(value)) for key, value in entry.items()}

    def rles(entry):
        masks = [coco_mask.encode(np.asfortranarray(m.astype(np.uint8))) for m in entry["masks"]]
        return entry | {"masks": [m | {"counts": m["counts"].decode()} for m in masks]}

    for change in (tensors, rles):
        metric.add_batch(predictions=map(change, predictions), references=map(change, references))
        assert metric.compute() == expected


def test_no_mask_outlives_its_batch():
    predictions, references = synthetic(0, images=3)
    metric = MaskAveragePrecision(num_labels=3)
    metric.add_batch(predictions=predictions, references=references)
    assert len(pickle.dumps(metric.state)) < 20_000  # the masks of 3 images: 1.3 MB


def test_ap_without_detections_or_ground_truth():
    metric = MaskAveragePrecision(num_labels=2)
    assert metric.compute()["ap"] == -1
    empty = {"masks": np.zeros((0, 4, 4), bool), "labels": [], "scores": []}
    metric.add(prediction=empty, reference=empty | {"iscrowd": []})
    assert metric.compute()["ap"] == -1
    one = {"masks": np.ones((1, 4, 4), bool), "labels": [1], "iscrowd": [0]}
    metric.add(prediction=empty, reference=one)
    result = metric.compute()
    assert result["ap"] == 0
    assert [result["per_class"][c]["ap"] for c in range(2)] == [-1, 0]


@pytest.mark.parametrize(("change", "value"), [
    ({"labels": [2]}, "label 2"),
    ({"labels": [0, 1]}, "2 labels"),
    ({"scores": None}, "'scores'"),
    ({"scores": [float("nan")]}, "score"),
    ({"masks": np.ones((1, 5, 4), bool)}, r"\(5, 4\)"),
    ({"masks": np.full((1, 4, 4), 0.5)}, "masks"),
    ({"masks": np.ones((4, 4), bool)}, r"\(4, 4\)"),
    ({"image_id": 3}, "twice"),
])  # fmt: skip
def test_wrong_input_of_an_image_is_named(change, value):
    good = {"masks": np.ones((1, 4, 4), bool), "labels": [1], "scores": [0.5], "iscrowd": [0]}
    references = [good | {"image_id": 3}] * 2
    with pytest.raises(ValueError, match=f"image 3.*{value}"):
        MaskAveragePrecision(num_labels=2).add_batch(predictions=[good | change] * 2, references=references)


def test_more_than_255_instances():
    """pycocotools' `area` overflows for lists of 256 masks or more."""
    mask = np.zeros((300, 20, 20), bool)
    for i in range(300):
        mask[i, i // 20, i % 20] = True
    metric = MaskAveragePrecision(num_labels=1)
    labels = np.zeros(300, np.int64)
    metric.add(
        prediction={"masks": mask, "labels": labels, "scores": np.full(300, 0.5)},
        reference={"masks": mask, "labels": labels, "iscrowd": labels},
    )
    assert metric.compute()["ar_100"] == pytest.approx(1 / 3)
