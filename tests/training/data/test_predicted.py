"""Folders of `eomt predict` are data sets: images at their place, segments of low score ignored."""

import json

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from eomt.configuration.labels import LabelSpace
from eomt.results import Results, file_state
from eomt.training.data import EvaluationTransform, load_data

from .synthetic import SIZE, picture, write

SPACE = LabelSpace("pets", ("sky", "cat"), (0,), (7, 300))
LEFT = np.arange(SIZE[1])[None].repeat(SIZE[0], 0) < 5


def predictions(task: str) -> dict:
    if task == "semantic":
        return {"segmentation": torch.from_numpy(np.where(LEFT, 1, -1))}
    if task == "panoptic":
        infos = [{"id": 0, "label_id": 1, "score": 0.9}, {"id": 1, "label_id": 0, "score": 0.4}]
        return {"segmentation": torch.from_numpy(np.where(LEFT, 0, 1)), "segments_info": infos}
    masks = [coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in (LEFT, ~LEFT)]
    return {"size": SIZE, "masks": masks, "labels": torch.tensor([1, 0]), "scores": torch.tensor([0.9, 0.4])}


def predicted(root, task: str, more: dict | None = None):
    photos = write(root / "photos", {f"{name}.jpg": picture(i) for i, name in enumerate(("a", "7"))})
    results = Results(root / "out", task, SPACE)
    for name in ("a", "7"):
        file = photos / f"{name}.jpg"
        results.write(name, file.name, predictions(task) | (more or {}), source=file_state(file))
    results.finish(["a", "7"])
    return root / "out"


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_predictions_are_read_as_a_data_set(tmp_path, task):
    dataset, space = load_data(predicted(tmp_path, task), task=task)
    assert space.names == ("sky", "cat")
    assert space.stuff_label_ids == ((0,) if task == "panoptic" else ())
    assert dataset["image_id"][:] == ["a", "7"]
    assert dataset["image"][0] == str(tmp_path / "photos/a.jpg")
    reference = dataset.with_transform(EvaluationTransform(space, task=task))[0]["reference"]
    if task == "semantic":
        assert np.array_equal(reference, np.where(LEFT, 1, 255))
    elif task == "panoptic":
        labels = {info["id"]: info["label_id"] for info in reference["segments_info"]}
        assert np.array_equal(np.vectorize(labels.get)(reference["segmentation"]), LEFT)
    else:
        assert np.array_equal(coco_mask.decode(reference["masks"]).transpose(2, 0, 1), [LEFT, ~LEFT])
        assert reference["labels"].tolist() == [1, 0]


@pytest.mark.parametrize("task", ["panoptic", "instance"])
def test_segments_below_the_score_floor_are_ignored(tmp_path, task):
    with pytest.raises(ValueError, match=r"below 1\.5"):
        load_data(predicted(tmp_path, task), task=task, score_floor=1.5)
    dataset, _ = load_data(predicted(tmp_path, task), task=task, score_floor=0.5)
    assert [segment["iscrowd"] for segment in dataset[0]["segments"]] == [0, 1]


def test_unconfident_pixels_are_unlabeled(tmp_path):
    folder = predicted(
        tmp_path, "semantic", {"confidence": torch.where(torch.arange(SIZE[1]) < 3, 0.4, 0.6).expand(SIZE)}
    )
    dataset, space = load_data(folder, task="semantic", score_floor=0.5)
    reference = dataset.with_transform(EvaluationTransform(space, task="semantic"))[0]["reference"]
    assert np.array_equal(reference, np.where(LEFT & (np.arange(SIZE[1]) >= 3), 1, 255))


def test_a_score_floor_without_scores_and_another_task_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"confidence/a\.png"):
        load_data(predicted(tmp_path / "semantic", "semantic"), task="semantic", score_floor=0.5)
    with pytest.raises(ValueError, match=r"panoptic\.json"):
        load_data(predicted(tmp_path / "instance", "instance"), task="panoptic")


@pytest.mark.parametrize("path", ["/dev/zero", "/etc/hostname", "gone.jpg"])
def test_only_image_files_are_read(tmp_path, path):
    folder = predicted(tmp_path, "instance")
    listing = json.loads((folder / "images.json").read_text())
    listing["images"][0]["path"] = path
    (folder / "images.json").write_text(json.dumps(listing))
    with pytest.raises(ValueError, match=path):
        load_data(folder, task="instance")


def test_a_png_outside_of_the_folder_is_not_read(tmp_path):
    folder = predicted(tmp_path, "panoptic")
    data = json.loads((folder / "panoptic.json").read_text())
    data["annotations"][0]["file_name"] = "../../outside.png"
    (folder / "panoptic.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="outside"):
        load_data(folder, task="panoptic")
    (folder / "panoptic.json").write_text('{"annotations": [{}]}')
    with pytest.raises(ValueError, match="segments_info"):
        load_data(folder, task="panoptic")
