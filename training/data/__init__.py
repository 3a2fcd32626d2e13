"""Data sets: official archives, folders of images and custom annotations as samples for training and evaluation.

Three steps, each usable alone:

    dataset, labels = load_data(path, dataset="auto", task="panoptic", split="train")
    train = dataset.with_transform(TrainTransform(labels, task="panoptic", size=640, scale_range=(0.1, 2.0)))
    val = load_data(path, task="panoptic", split="val")[0].with_transform(EvaluationTransform(labels, task="panoptic"))

1. `load_data` reads a folder (extracted data, official zips or custom data) into a `datasets.Dataset` and a
   `LabelSpace`. Rows hold paths and small annotations, never pixels: they are cheap to pickle, spawn and fork. JSON and
   text annotations are checked here, before training starts. Pixels are checked when they are read; `check_data` and
   `eomt train --check` read all of them. Columns:
       image_id     int64 (COCO) or string
       file_name    name of the image in error messages
       image        location of the image (files.py)
       annotation   location of the label PNG, "" without one
       second_png   location of another PNG: instances (ADE20K), objects (VOC), confidence (pseudo-labels); "" without
       segments     list of {"id", "label_id", "iscrowd", "area", "shape"}; shape: JSON of polygons or RLE, "" for a PNG
       size         [H, W] from the annotation file, or []
       score_floor  minimum confidence of pseudo-labels; pixels below it are unlabeled
       layout       format of the annotation and target task: a key of `LAYOUTS` (samples.py)
2. `TrainTransform` turns rows into a dict of lists, as `with_transform` requires, with one entry per image:
       pixel_values  uint8 (3, S_h, S_w)          mask_labels  bool (n, S_h, S_w)
       class_labels  int64 (n,)                   file_name    str
   n is 0 for an image without segments. Crowds are dropped. All random numbers come from torch's generator, so the
   worker seeds of a DataLoader make runs repeatable.
3. `EvaluationTransform` turns rows into a dict of lists:
       image         uint8 (3, H, W), unchanged    reference    ground truth of one image for the task's metric
       image_id      int or str                    file_name    str
   reference: panoptic {"segmentation": int32 (H, W), "segments_info": [{"id", "label_id", "iscrowd"}]};
   semantic int32 (H, W), `label_space.ignore_index` if unlabeled;
   instance {"masks": [RLE, …], "labels": int64 (n,), "iscrowd": int64 (n,), "area": float64 (n,)}.

`EoMTDataCollator` (training/collator.py) stacks samples of `TrainTransform` into batches. `evaluate_model`
(training/evaluation.py) computes the metric over a data set with `EvaluationTransform`.
"""

from .load import load_data
from .rows import make_row
from .samples import EvaluationTransform, TrainTransform
from .shapes import make_shapes

__all__ = ["EvaluationTransform", "TrainTransform", "load_data", "make_row", "make_shapes"]
