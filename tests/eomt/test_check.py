"""The check of a data set: counts, unreadable files, a sheet of samples."""

import json

import numpy as np
import pytest
from PIL import Image

from eomt.check import check_data, describe
from eomt.training.data import EvaluationTransform, TrainTransform, load_data, samples
from tests.training.data.synthetic import SIZE, annotation, extracted, instance_json, picture, png, write


@pytest.mark.parametrize("task", ["panoptic", "instance"])
def test_images_segments_and_pixels_are_counted(tmp_path, task):
    dataset, space = load_data(extracted(tmp_path / "data"), task=task, split="val")
    transform = TrainTransform(space, task=task, size=64)
    report = check_data(dataset, space, transform, tmp_path / "out", num_workers=1 if task == "instance" else 0)
    assert report["images"] == 2
    assert report["unreadable"] == []
    assert report["height"] == {"min": 12, "median": 12.0, "max": 12}
    assert report["width"]["max"] == 16
    assert report["without_segments"] == 1
    assert report["crowds"] == 1
    counted = {c["name"]: (c["images"], c["segments"], round(c["pixels"] * 2 * 192)) for c in report["classes"]}
    if task == "panoptic":
        assert counted == {"person": (0, 0, 0), "dog": (1, 1, 24), "flower": (1, 1, 96)}
    else:
        assert counted == {"person": (1, 1, 24), "dog": (1, 1, 24)}
    assert json.loads((tmp_path / "out/check.json").read_text()) == report
    assert min(Image.open(report["sheet"]).size) > 300
    text = describe(report)
    assert "2 images, 0 unreadable" in text
    assert "dog" in text


def test_an_image_of_300_instances_is_checked(tmp_path, monkeypatch):
    """pycocotools' area overflows for lists of 256 masks or more (numpy 2.4)."""
    data = instance_json()
    squares = ((i % 16, i // 16 % 12) for i in range(300))
    data["annotations"] = [
        annotation(i, 18, [[x, y, x + 1, y, x + 1, y + 1, x, y + 1]]) for i, (x, y) in enumerate(squares)
    ]
    root = write(extracted(tmp_path / "data"), {"annotations/instances_val2017.json": data})
    dataset, space = load_data(root, task="instance", split="val")
    report = check_data(dataset, space, TrainTransform(space, task="instance", size=32), tmp_path / "out", samples=2)
    assert report["unreadable"] == []
    assert report["segments_per_image"]["max"] == 300
    sample = dataset.with_transform(EvaluationTransform(space, task="instance"))[1]
    assert sample["reference"]["area"].tolist() == [1] * 300
    monkeypatch.setattr(samples, "MAX_MASK_BYTES", 299 * 96 * 96)
    transform = TrainTransform(space, task="instance", size=96, augment=False)
    with pytest.raises(ValueError, match=dataset[1]["file_name"]):  # before the allocation
        dataset.with_transform(transform)[1]


def test_unreadable_files_are_listed_and_others_counted(tmp_path):
    files = {}
    for i in range(4):
        files |= {f"images/{i}.jpg": picture(i), f"labels/{i}.png": png(np.ones(SIZE))}
    files |= {"images/1.jpg": b"broken", "labels/3.png": png(np.ones((5, 5)))}
    dataset, space = load_data(write(tmp_path / "data", files), task="semantic")
    seen = {}
    report = check_data(dataset, space, TrainTransform(space, task="semantic", size=32), tmp_path, seen=seen)
    assert not report["repeated"]
    second = check_data(dataset, space, TrainTransform(space, task="semantic", size=32), tmp_path, seen=seen)
    assert second["repeated"] == ["images/0.jpg", "images/2.jpg"]
    assert len(report["unreadable"]) == 2
    assert "images/1.jpg" in report["unreadable"][0]
    assert "images/3.jpg" in report["unreadable"][1]
    assert "5×5" in report["unreadable"][1]
    assert report["classes"] == [{"label": 0, "name": "class_1", "images": 2, "segments": 2, "pixels": 1.0}]
    assert "4 images, 2 unreadable" in describe(report)
