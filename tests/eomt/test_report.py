"""The report of an evaluation: worst images, confusion, table and CSV."""

import csv
import math

import numpy as np
import pytest
import torch
from PIL import Image

from eomt.configuration.labels import LabelSpace
from eomt.evaluate import class_rows, metric_table, write_classes
from eomt.image_processing.rle import encode_masks
from eomt.report import ImageReport
from eomt.training.metrics import MeanIoU, PanopticQuality

SPACE = LabelSpace("synthetic", ("a", "b", "c"), (2,), (1, 5, 9))


def sample(name: str, reference) -> dict:
    image = torch.zeros(3, 40, 60, dtype=torch.uint8)
    return {"image": image, "reference": reference, "image_id": name, "file_name": f"x/{name}.jpg"}


def semantic(share: float) -> tuple[np.ndarray, torch.Tensor]:
    """Ground truth of class 0, and a prediction of class 1 in a share of the columns."""
    predicted = torch.zeros(40, 60, dtype=torch.int32)
    predicted[:, : int(60 * share)] = 1
    return np.zeros((40, 60), np.int32), predicted


def test_the_worst_images_are_kept_in_order(tmp_path):
    report = ImageReport("semantic", SPACE, worst=2)
    for name, share in (("good", 0.0), ("bad", 0.8), ("so-so", 0.4), ("worse", 0.9)):
        reference, predicted = semantic(share)
        report(sample(name, reference), predicted)
        assert len(report.kept) <= 2
    report(sample("void", np.full((40, 60), 255, np.int32)), torch.zeros(40, 60, dtype=torch.int32))
    report.gathered()
    listed = report.draw_worst(tmp_path)
    assert [entry["file_name"] for entry in listed] == ["x/worse.jpg", "x/bad.jpg"]
    assert listed[0]["mean_iou"] == pytest.approx(0.05)  # class 0: 0.1, class 1: 0
    picture = Image.open(listed[0]["picture"])
    assert picture.width > 3 * picture.height  # three panels
    assert report.confusion[0].tolist() == [60 * 40 * 4 - 40 * (48 + 24 + 54), 40 * (48 + 24 + 54), 0, 0]
    report.draw_confusion(tmp_path / "confusion.png")
    assert min(Image.open(tmp_path / "confusion.png").size) > 200


def test_confusion_of_panoptic_excludes_void_and_crowds():
    report = ImageReport("panoptic", SPACE)
    true = np.array([[7, 7, 8, 9, 0]])
    info = [
        {"id": 7, "label_id": 0, "iscrowd": 0},
        {"id": 8, "label_id": 1, "iscrowd": 1},
        {"id": 9, "label_id": 2, "iscrowd": 0},
    ]
    predicted = {
        "segmentation": torch.tensor([[0, 1, 1, -1, 0]]),
        "segments_info": [{"id": 0, "label_id": 0}, {"id": 1, "label_id": 1}],
    }
    report(sample("a", {"segmentation": true, "segments_info": info}), predicted)
    assert report.confusion.tolist() == [[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]


def test_confusion_of_instances_matches_by_overlap():
    masks = torch.zeros(3, 10, 10, dtype=torch.bool)
    masks[0, :5], masks[1, 6:8], masks[2, 9:] = True, True, True
    rles = encode_masks(masks.numpy())
    reference = {"masks": rles, "labels": [0, 1, 2], "iscrowd": [0, 0, 1]}
    found = {
        "masks": [rles[0], rles[1], rles[1]],
        "labels": torch.tensor([2, 1, 0]),
        "scores": torch.tensor([0.9, 0.8, 0.1]),  # the last is below the threshold
    }
    report = ImageReport("instance", SPACE)
    report(sample("a", reference), found)
    assert report.confusion.tolist() == [[0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    report(sample("b", reference), {"masks": [], "labels": torch.zeros(0).long(), "scores": torch.zeros(0)})
    assert report.confusion[:, -1].tolist() == [1, 1, 0]


def test_the_table_is_in_percent_with_blocks_and_the_papers_results():
    result = {"mean_iou": 0.512345, "mean_accuracy": math.nan, "overall_accuracy": 0.9}
    result |= {"mean_iou_block_2": 0.25, "mean_iou_block_10": 0.5}
    lines = metric_table(result, "semantic", [("mIoU, Table 5: a_recipe", 58.4)]).splitlines()
    assert lines[0].split() == ["mIoU", "mAcc", "aAcc"]
    assert lines[1].split() == ["51.23", "–", "90.00"]
    assert lines[2].split() == ["25.00", "before", "block", "2"]
    assert lines[3].split() == ["50.00", "before", "block", "10"]
    assert lines[4].split() == ["58.40", "mIoU,", "Table", "5:", "a_recipe"]


def test_the_csv_of_classes_has_blanks_for_absent_classes(tmp_path):
    ids = np.zeros((4, 4), int)
    entry = {"segmentation": ids, "segments_info": [{"id": 0, "label_id": 1}]}
    panoptic, semantic = PanopticQuality(num_labels=3), MeanIoU(num_labels=3)
    panoptic.add(prediction=entry, reference=entry)
    semantic.add(prediction=ids + 1, reference=ids + 1)
    for task, result in (("panoptic", panoptic.compute()), ("semantic", semantic.compute())):
        write_classes(class_rows(result, task, SPACE), tmp_path / "per_class.csv")
        rows = list(csv.DictReader((tmp_path / "per_class.csv").open()))
        key = "pq" if task == "panoptic" else "iou"
        found = [(r["name"], r["dataset_id"], r[key]) for r in rows]
        assert found == [("a", "1", ""), ("b", "5", "1.0"), ("c", "9", "")]
