"""Data sets: from official archives, folders and own annotations to what the model and the metrics take.

Three steps, each usable alone:

    dataset, labels = load_data(path, dataset="auto", task="panoptic", split="train")
    train = dataset.with_transform(TrainTransform(labels, task="panoptic", size=640, scale_range=(0.1, 2.0)))
    val = load_data(path, task="panoptic", split="val")[0].with_transform(EvaluationTransform(labels, task="panoptic"))

1. `load_data`: a folder (extracted data, official zips, or own data) → `datasets.Dataset` and `LabelSpace`. Rows hold
   paths and small annotations only, never pixels: safe to pickle, spawn and fork; archives are opened on first use in
   each process. Annotations in json and txt are all checked here, before training starts; pixels when they are
   read (`check_data`, `eomt train --check` reads them all). Columns:
       image_id     int64 (COCO) or string      file_name    what errors call the image
       image        path, "zip://member::archive.zip", or "row://…" of a data set of the `datasets` library
       annotation   the same, for a png ("" where there is none)
       second_png   the same: instances of ADE20K, objects of VOC, confidence of predicted classes
       segments     list of {"id", "label_id", "iscrowd", "area", "shape"}; shape: JSON of polygons or RLE, "" for png
       size         [H, W] as the annotation file says, or []
       score_floor  less confident pixels of predicted classes are unlabeled
       layout       what the files are, and of which task they are made samples: a key of `LAYOUTS` in samples.py
2. `TrainTransform`: rows → dict of lists (what `with_transform` wants), one entry an image:
       pixel_values  uint8 (3, S_h, S_w)          mask_labels  bool (n, S_h, S_w)
       class_labels  int64 (n,)                   file_name    str
   n may be 0: "nothing here". Crowds are dropped. Random numbers come from torch's generator only, so the DataLoader's
   worker seeds make runs repeatable.
3. `EvaluationTransform`: rows → dict of lists:
       image         uint8 (3, H, W), untouched    reference    what the task's metric takes as one reference (below)
       image_id      int or str                    file_name    str
   reference: panoptic {"segmentation": int32 (H, W), "segments_info": [{"id", "label_id", "iscrowd"}]};
   semantic int32 (H, W), `label_space.ignore_index` where unlabeled;
   instance {"masks": [RLE, …], "labels": int64 (n,), "iscrowd": int64 (n,), "area": float64 (n,)}.

`EoMTDataCollator` (training/collator.py) stacks samples of `TrainTransform` to batches; `evaluate_model`
(training/evaluation.py) streams a data set with `EvaluationTransform` through the metric.
"""

from .load import load_data
from .rows import make_row
from .samples import EvaluationTransform, TrainTransform
from .shapes import make_shapes

__all__ = ["EvaluationTransform", "TrainTransform", "load_data", "make_row", "make_shapes"]
