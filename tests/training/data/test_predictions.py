"""Predictions in files: names that other tools use, and errors that name the file and the value."""

import numpy as np
import pytest

from eomt.training.data import EvaluationTransform, load_data
from eomt.training.data.predictions import read_predictions

from .synthetic import CATEGORIES, SIZE, annotation, cityscapes, extracted, panoptic_ids, panoptic_png, png, write


def opened(root, task):
    dataset, space = load_data(root, task=task, split="val")
    return dataset.with_transform(EvaluationTransform(space, task=task)), space


def test_names_of_label_pngs_from_other_tools_are_found(tmp_path):
    dataset, space = opened(cityscapes(tmp_path / "data"), "semantic")
    for name in ("munster_000000_000019_leftImg8bit.png", "val/munster/munster_000000_000019_gtFine_labelIds.png"):
        folder = write(tmp_path / name.replace("/", "-"), {name: png(np.full(SIZE, 7))})
        ((_, p),) = read_predictions(folder, "semantic", space, dataset)
        assert (p == 0).all()


def panoptic_files(root, change=lambda data: None):
    segments = [{"id": 300, "category_id": 119}, {"id": 70000, "category_id": 18}, {"id": 5, "category_id": 1}]
    data = {
        "annotations": [
            {"image_id": 10, "file_name": "a.png", "segments_info": segments},
            {"image_id": 9, "file_name": "b.png", "segments_info": []},
        ],
        "categories": CATEGORIES,
    }
    change(data)
    pngs = {"p/a.png": panoptic_png(panoptic_ids()), "p/b.png": panoptic_png(np.zeros(SIZE, int))}
    return write(root / "files", {"p.json": data} | pngs)


GOOD = annotation(1, 18, [[2, 2, 8, 2, 8, 6, 2, 6]], score=0.5)
NAME = "munster_000000_000019"
FAULTS = [  # task, files or a function that changes the JSON of panoptic_files, the values in the error
    ("panoptic", lambda d: d["annotations"][0].update(image_id=77), "id 77"),
    ("panoptic", lambda d: d["annotations"].pop(), "image 9"),
    ("panoptic", lambda d: d["annotations"].append(d["annotations"][1]), "image 9"),
    ("panoptic", lambda d: d["annotations"][0].update(file_name="c.png"), "c.png"),
    ("panoptic", lambda d: d["annotations"][0].update(file_name="../a.png"), "../a.png"),
    ("panoptic", lambda d: d["annotations"][0]["segments_info"][0].update(category_id=4), "300.*category 4"),
    ("instance", {"r.json": [GOOD | {"image_id": 4}]}, "annotation 0.*id 4"),
    ("instance", {"r.json": [GOOD | {"category_id": 4}]}, "annotation 0.*category 4"),
    ("instance", {"r.json": [GOOD | {"score": None}]}, "result 0.*None"),
    ("instance", {"r.json": [GOOD, GOOD | {"segmentation": []}]}, "result 1"),
    ("instance", {"r.json": [GOOD | {"segmentation": [[0, 0, 9e4, 0, 1, 1]]}]}, "image 10.*90000"),
    ("semantic", {"readme.txt": ""}, NAME),
    ("semantic", {"other.png": b""}, "other.png"),
    ("semantic", {f"{NAME}.png": b"", f"x/{NAME}_pred.png": b""}, f"{NAME}.*{NAME}_pred"),
    ("semantic", {f"{NAME}.png": png(np.full(SIZE, 99))}, f"{NAME}.png.* 99"),
]


@pytest.mark.parametrize(("task", "files", "values"), FAULTS)
def test_wrong_predictions_are_named_with_their_file(tmp_path, task, files, values):
    root = cityscapes(tmp_path / "data") if task == "semantic" else extracted(tmp_path / "data")
    dataset, space = opened(root, task)
    folder = panoptic_files(tmp_path, files) if callable(files) else write(tmp_path / "files", files)
    with pytest.raises(ValueError, match=values):
        list(read_predictions(folder, task, space, dataset))


def test_images_may_have_no_instances(tmp_path):
    dataset, space = opened(extracted(tmp_path / "data"), "instance")
    found = [p for _, p in read_predictions(write(tmp_path / "files", {"r.json": [GOOD]}), "instance", space, dataset)]
    assert [len(p["masks"]) for p in found] == [0, 1]


def test_two_json_files_are_refused(tmp_path):
    dataset, space = opened(extracted(tmp_path / "data"), "panoptic")
    with pytest.raises(ValueError, match=": 2 "):
        list(
            read_predictions(
                write(panoptic_files(tmp_path), {"q.json": {"annotations": []}}), "panoptic", space, dataset
            )
        )
