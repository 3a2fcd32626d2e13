"""Predictions as files: ours are read back the same, other tools' habits, and every fault reported by file and id."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle

from eomt.results import Results
from eomt.training.data import EvaluationTransform, load_data
from eomt.training.data.predictions import read_predictions
from eomt.training.evaluation import as_reference, metric_for

from .synthetic import CATEGORIES, SIZE, annotation, cityscapes, damaged, extracted, panoptic_ids, panoptic_png, write


def opened(root, task):
    dataset, space = load_data(root, task=task, split="val")
    return dataset.with_transform(EvaluationTransform(space, task=task)), space


def prediction(task: str, seed: int):
    rng = np.random.default_rng(seed)
    ids = torch.from_numpy(rng.integers(-1, 3, (3, 4)).repeat(4, 0).repeat(4, 1))
    if task == "panoptic":
        info = [{"id": int(i), "label_id": int(i), "score": 0.9} for i in ids.unique() if i >= 0]
        return {"segmentation": ids.int(), "segments_info": info}
    if task == "instance":
        masks = [rle.encode(np.asfortranarray(ids.numpy() == i).astype(np.uint8)) for i in range(3)]
        scores = torch.tensor([0.9, 0.5, 1 / 3])
        return {"size": tuple(ids.shape), "masks": masks, "labels": torch.tensor([1, 0, 1]), "scores": scores}
    return {"segmentation": (ids.int() + 1) % 19}


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_written_and_read_back(tmp_path, task):
    root = cityscapes(tmp_path / "data") if task == "semantic" else extracted(tmp_path / "data")
    dataset, space = opened(root, task)
    results, given = Results(tmp_path / "files", task, space), {}
    for i in range(len(dataset)):
        image_id, name = dataset[i]["image_id"], dataset[i]["file_name"]
        given[image_id] = prediction(task, i)
        results.write(str(image_id), name, given[image_id], image_id)
    results.finish(map(str, given))
    found = {s["image_id"]: p for s, p in read_predictions(tmp_path / "files", task, space, dataset)}
    assert set(found) == set(given)
    for key, p in found.items():
        if task == "semantic":
            assert torch.equal(p, given[key]["segmentation"])
        elif task == "panoptic":
            labels = {s["id"]: s["label_id"] for s in p["segments_info"]} | {0: -1}
            assert np.array_equal(np.vectorize(labels.get)(p["segmentation"]), given[key]["segmentation"])
        else:
            assert p["labels"].tolist() == given[key]["labels"].tolist()
            torch.testing.assert_close(p["scores"], given[key]["scores"].double())
            assert [rle["size"] for rle in p["masks"]] == [list(SIZE)] * 3


def test_names_that_other_tools_give_label_pngs(tmp_path):
    dataset, space = opened(cityscapes(tmp_path / "data"), "semantic")
    label = np.full(SIZE, 7, np.uint8)
    for name in ("munster_000000_000019_leftImg8bit.png", "val/munster/munster_000000_000019_gtFine_labelIds.png"):
        folder = write(tmp_path / name.replace("/", "-"), {name: b""})
        Image.fromarray(label).save(folder / name)
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
    return write(root, {"p.json": data} | pngs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["annotations"][0].update(image_id=77), "id 77"),
        (lambda d: d["annotations"].pop(), "image 9"),
        (lambda d: d["annotations"].append(d["annotations"][1]), "id 9"),
        (lambda d: d["annotations"][0].update(file_name="c.png"), "c.png"),
        (lambda d: d["annotations"][0].update(file_name="../a.png"), "../a.png"),
        (
            lambda d: d["annotations"][0]["segments_info"][0].update(category_id=4),
            "segment 300: category 4",
        ),
    ],
)
def test_faults_of_panoptic_files(tmp_path, change, message):
    dataset, space = opened(extracted(tmp_path / "data"), "panoptic")
    folder = panoptic_files(tmp_path / "files", change)
    with pytest.raises(ValueError, match=message):
        list(read_predictions(folder, "panoptic", space, dataset))


def test_the_json_itself_may_be_named(tmp_path):
    dataset, space = opened(extracted(tmp_path / "data"), "panoptic")
    folder = panoptic_files(tmp_path / "files")
    write(folder, {"other.json": {"annotations": []}})
    assert len(list(read_predictions(folder / "p.json", "panoptic", space, dataset))) == 2
    with pytest.raises(ValueError, match="2 json"):
        list(read_predictions(folder, "panoptic", space, dataset))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 4}, "result 0.* id 4"),
        ({"category_id": 4}, "result 0: category 4"),
        ({"score": None}, "result 0.*None"),
        ({"segmentation": [[1, 2]]}, "result 0.*not 2"),
        ({"segmentation": [[0, 0, 9e4, 0, 1, 1]]}, "image 10.*90000"),
    ],
)
def test_faults_of_instance_files(tmp_path, change, message):
    dataset, space = opened(extracted(tmp_path / "data"), "instance")
    good = annotation(1, 18, [[2, 2, 8, 2, 8, 6, 2, 6]], score=0.5)
    found = [p for _, p in read_predictions(write(tmp_path / "a", {"r.json": [good]}), "instance", space, dataset)]
    assert [len(p["masks"]) for p in found] == [0, 1]  # nothing found in an image is not a fault
    with pytest.raises(ValueError, match=message):
        list(read_predictions(write(tmp_path / "b", {"r.json": [good | change]}), "instance", space, dataset))


def test_faults_of_label_pngs(tmp_path):
    dataset, space = opened(cityscapes(tmp_path / "data"), "semantic")
    with pytest.raises(ValueError, match="munster_000000_000019"):
        list(read_predictions(write(tmp_path / "a", {"readme.txt": ""}), "semantic", space, dataset))
    with pytest.raises(ValueError, match=r"other.png"):
        list(read_predictions(write(tmp_path / "b", {"other.png": b""}), "semantic", space, dataset))
    name = "munster_000000_000019"
    twice = write(tmp_path / "c", {f"{name}.png": b"", f"x/{name}_pred.png": b""})
    with pytest.raises(ValueError, match=f"{name}.*{name}_pred"):
        list(read_predictions(twice, "semantic", space, dataset))
    wrong = write(tmp_path / "d", {f"{name}.png": b""})
    Image.fromarray(np.full(SIZE, 99, np.uint8)).save(wrong / f"{name}.png")
    with pytest.raises(ValueError, match=rf"{name}.png.* 99"):
        list(read_predictions(wrong, "semantic", space, dataset))


@pytest.mark.parametrize("task", ["panoptic", "instance"])
def test_any_damage_to_a_file_is_a_value_error_or_harmless(tmp_path, task):
    dataset, space = opened(extracted(tmp_path / "data"), task)
    metric = metric_for(task, space)
    folder = panoptic_files(tmp_path / "files")
    good = [annotation(1, 18, [[2, 2, 8, 2, 8, 6, 2, 6]], score=0.5)]
    file = folder / "p.json"
    refused = []
    for data in damaged(json.loads(file.read_text()) if task == "panoptic" else good):
        file.write_text(json.dumps(data))
        try:
            for sample, prediction in read_predictions(folder, task, space, dataset):
                metric.compute_image(prediction, as_reference(sample))
        except ValueError as error:
            refused.append(str(error))
    assert len(refused) > 30
    assert not [message for message in refused if "\n" in message]
