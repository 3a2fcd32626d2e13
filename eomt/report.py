"""Drawings of `eomt evaluate`: the worst images and a confusion matrix.

C classes · H, W image · n instances
"""

import math
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

from .configuration import TASK_ROWS
from .configuration.labels import LabelSpace
from .drawing import class_colors, draw_prediction, side_by_side
from .image_processing.bands import picture_of
from .image_processing.inference import confident_instances
from .training.evaluation import as_reference, metric_for
from .training.metrics.mean_iou import confusion
from .training.processes import gather

SHOWN_SCORE, SHOWN_IOU = 0.5, 0.5  # least score of drawn and counted instances; least IoU of a match
MAX_CLASSES = 40  # of the drawn confusion matrix


class ImageReport:
    """Collects a confusion matrix and the `worst` images, a number, by the metric of each image."""

    def __init__(self, task: str, label_space: LabelSpace, worst: int = 0):
        self.task, self.space, self.worst = task, label_space, worst
        self.metric = metric_for(task, label_space)
        self.kept: list[tuple] = []  # (score, file name, entries to draw), worst first, at most `worst`
        self.confusion = np.zeros((label_space.num_labels, label_space.num_labels + 1), np.int64)

    def __call__(self, sample: dict, prediction) -> None:
        """Add an image: a sample of `EvaluationTransform` and the result of `predict_image`."""
        reference = as_reference(sample)
        self.confusion += _image_confusion(self.task, prediction, reference, self.space)
        if not self.worst:
            return
        score = self.metric.compute_image(prediction, reference)[TASK_ROWS[self.task].metric_key]
        if math.isnan(score) or score < 0:  # no ground truth
            return
        if len(self.kept) == self.worst and (score, sample["file_name"]) >= self.kept[-1][:2]:
            return
        drawn = sample["image"].numpy(), _drawable(prediction), _drawable(reference)
        self._keep([(score, sample["file_name"], drawn)])

    def gathered(self) -> None:
        """Join the parts of all processes. Each must call this."""
        self.confusion = np.sum(gather(self.confusion), 0)
        parts, self.kept = gather(self.kept), []
        self._keep([entry for part in parts for entry in part])

    def _keep(self, entries: list[tuple]) -> None:
        self.kept = sorted([*self.kept, *entries], key=lambda entry: entry[:2])[: self.worst]

    def draw_worst(self, folder: Path) -> list[dict]:
        """Write image, ground truth and prediction side by side, worst first. Returns names, scores and paths."""
        folder.mkdir(parents=True, exist_ok=True)
        listed = []
        for number, (score, name, (pixels, prediction, reference)) in enumerate(self.kept, 1):
            image = picture_of(pixels)
            drawing = {"id2label": self.space.id2label}
            drawing["colors"] = class_colors([*_labels(reference), *_labels(prediction)])
            panels = [
                (Path(name).name, image),
                ("ground truth", draw_prediction(image, reference, **drawing)),
                ("prediction", draw_prediction(image, prediction, **drawing)),
            ]
            path = folder / f"{number:02d}_{Path(name).stem}.jpg"
            side_by_side(panels).save(path, quality=90)
            listed.append({"file_name": name, TASK_ROWS[self.task].metric_key: score, "picture": str(path)})
        return listed

    def draw_confusion(self, path: Path) -> None:
        """Write a heat map: one row for each true class, with a sum of 1. Of many classes, those with most pixels."""
        from matplotlib import pyplot as plt

        true, predicted = self.confusion.sum(1), self.confusion.sum(0)[:-1]  # [C]
        order = np.argsort(-(true + predicted), kind="stable")[:MAX_CLASSES]
        columns = np.sort(order[(true + predicted)[order] > 0])
        rows = columns[true[columns] > 0]
        matrix = self.confusion[rows].astype(float)
        rest = matrix.sum(1) - matrix[:, columns].sum(1) - matrix[:, -1]
        matrix = np.column_stack([matrix[:, columns], rest, matrix[:, -1]]) / matrix.sum(1, keepdims=True)
        size = (4.5 + 0.28 * len(columns), 3 + 0.28 * len(rows))  # inches
        figure, axes = plt.subplots(figsize=size, layout="constrained")
        heat_map = axes.imshow(matrix, vmin=0, vmax=1, cmap="magma")
        names = self.space.names
        axes.set_xticks(
            range(len(columns) + 2), [*(names[i] for i in columns), "other classes", "nothing"], rotation=90
        )
        axes.set_yticks(range(len(rows)), [names[i] for i in rows])
        axes.set_xlabel("predicted")
        unit = "instances" if self.task == "instance" else "pixels"
        axes.set_ylabel(f"true (rows: share of the {unit} of a class)")
        figure.colorbar(heat_map, shrink=0.7)
        figure.savefig(path, dpi=110)
        plt.close(figure)


def _image_confusion(task: str, prediction, reference: dict, space: LabelSpace) -> np.ndarray:
    """(C, C + 1) true × predicted pixels of an image, or instances matched at IoU 0.5. The last column is nothing."""
    if task == "semantic":
        return confusion(prediction, reference, space.num_labels, space.ignore_index)
    if task == "panoptic":
        void = space.num_labels  # skipped in the ground truth, "nothing" in the prediction
        maps = [_class_map(entry, void, entry is reference) for entry in (prediction, reference)]
        return confusion(*maps, space.num_labels, void)
    matrix = np.zeros((space.num_labels, space.num_labels + 1), np.int64)
    prediction = confident_instances(prediction, SHOWN_SCORE)
    found, annotated = prediction["masks"], reference["masks"]
    crowd = np.asarray(reference["iscrowd"]).astype(bool)
    labels = prediction["labels"].tolist()
    overlap = np.zeros((len(found), len(annotated)))
    if found and annotated:
        overlap = coco_mask.iou(found, annotated, [0] * len(annotated))
    for k, label in enumerate(np.asarray(reference["labels"]).tolist()):
        if crowd[k]:
            continue
        matched = -1  # nothing
        if found and overlap[:, k].max() >= SHOWN_IOU:
            matched = labels[overlap[:, k].argmax()]
        matrix[label, matched] += 1
    return matrix


def _class_map(entry: dict, void: int, skip_crowds: bool) -> np.ndarray:
    """(H, W) class of each pixel, `void` outside the segments."""
    ids = np.asarray(entry["segmentation"])
    classes = np.full(ids.shape, void, np.int64)
    for s in entry["segments_info"]:
        if not (skip_crowds and s.get("iscrowd")):
            classes[ids == s["id"]] = s["label_id"]
    return classes


def _drawable(entry):
    """A prediction or ground truth, without predicted instances of low score."""
    return confident_instances(entry, SHOWN_SCORE) if isinstance(entry, dict) and "scores" in entry else entry


def _labels(entry) -> list[int]:
    """Labels in a prediction or ground truth."""
    if not isinstance(entry, dict):  # a semantic ground truth
        entry = {"segmentation": entry}
    if "segments_info" in entry:
        return [s["label_id"] for s in entry["segments_info"]]
    if "labels" in entry:
        return [int(label) for label in entry["labels"]]
    return [label for label in np.unique(np.asarray(entry["segmentation"])).tolist() if label >= 0]
