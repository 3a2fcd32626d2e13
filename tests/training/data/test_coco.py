"""COCO panoptic and instance: official zips and extracted folders; pixels, labels, and errors."""

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from eomt.configuration.labels import LabelSpace, label_space
from eomt.training.data import EvaluationTransform, TrainTransform, load_data
from eomt.training.data.rows import UnknownClass

from .synthetic import IMAGES, PNGS, SIZE, extracted, instance_json, panoptic_ids, panoptic_json, picture, write, zipped


def official_zips(root):
    pngs = {f"annotations/{name}": content for name, content in PNGS.items()}
    panoptic = {"annotations/panoptic_val2017.json": panoptic_json(), **pngs}
    instance = {
        "annotations/instances_val2017.json": instance_json(),
        "annotations/captions_val2017.json": {"images": [], "annotations": []},
    }
    return write(
        root,
        {
            "val2017.zip": zipped(IMAGES),
            "panoptic_annotations_trainval2017.zip": zipped(panoptic),
            "annotations_trainval2017.zip": zipped(instance),
        },
    )


def half_extracted(root):
    """The outer archive is extracted; the PNGs are in a zip beside their JSON; images are in `images/`."""
    images = {f"images/{name}": content for name, content in IMAGES.items()}
    annotations = {
        "annotations/panoptic_val2017.json": panoptic_json(),
        "annotations/panoptic_val2017.zip": zipped(PNGS),
        "annotations/instances_val2017.json": instance_json(),
    }
    return write(root, images | annotations)


LAYOUTS = [official_zips, extracted, half_extracted]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_panoptic(tmp_path, layout):
    dataset, space = load_data(layout(tmp_path / "data"), task="panoptic", split="val")
    assert space.names == ("person", "dog", "flower")  # ascending category ids
    assert space.stuff_label_ids == (2,)
    assert space.dataset_ids == (1, 18, 119)
    assert dataset["image_id"][:] == [9, 10]  # by the number in the name
    sample = dataset.with_transform(EvaluationTransform(space, task="panoptic"))[1]
    expected = panoptic_ids()
    assert sample["image"].shape == (3, *SIZE)
    assert np.array_equal(sample["reference"]["segmentation"], np.where(expected == 0, -1, expected))
    assert sample["reference"]["segments_info"] == [
        {"id": 5, "label_id": 0, "iscrowd": 1},
        {"id": 300, "label_id": 2, "iscrowd": 0},
        {"id": 70000, "label_id": 1, "iscrowd": 0},
    ]
    train = dataset.with_transform(TrainTransform(space, task="panoptic", size=SIZE, augment=False))
    assert train[1]["class_labels"].tolist() == [2, 1]  # the crowd is dropped
    assert np.array_equal(train[1]["mask_labels"].numpy(), [expected == 300, expected == 70000])
    assert train[0]["mask_labels"].shape == (0, *SIZE)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_instance(tmp_path, layout):
    dataset, space = load_data(layout(tmp_path / "data"), task="instance", split="val")
    assert space.names == ("person", "dog")
    assert space.stuff_label_ids == ()
    empty, sample = list(dataset.with_transform(EvaluationTransform(space, task="instance")))
    assert [len(row["reference"]["masks"]) for row in (empty, sample)] == [0, 3]
    masks = coco_mask.decode(sample["reference"]["masks"]).transpose(2, 0, 1)  # [n, H, W]
    polygon, left, corner = (np.zeros(SIZE, bool) for _ in range(3))
    polygon[2:6, 2:8], left[:, :2], corner[-5:, -1] = True, True, True
    assert np.array_equal(masks, [polygon, left, corner])
    assert sample["reference"]["labels"].tolist() == [1, 0, 0]
    assert sample["reference"]["iscrowd"].tolist() == [0, 0, 1]
    assert sample["reference"]["area"].tolist() == [24.5, 24, 5]
    train = dataset.with_transform(TrainTransform(space, task="instance", size=SIZE, augment=False))
    assert train[0]["mask_labels"].shape == (0, *SIZE)
    assert np.array_equal(train[1]["mask_labels"].numpy(), [polygon, left])
    assert train[1]["class_labels"].dtype == torch.int64


def test_a_zip_inside_a_zip_is_to_be_unpacked(tmp_path):
    files = {"annotations/panoptic_val2017.json": panoptic_json(), "annotations/panoptic_val2017.zip": zipped(PNGS)}
    archives = {"val2017.zip": zipped(IMAGES), "panoptic_annotations_trainval2017.zip": zipped(files)}
    with pytest.raises(ValueError, match=r"panoptic_val2017\.zip"):
        load_data(write(tmp_path, archives), task="panoptic", split="val")


@pytest.mark.parametrize("only", ["panoptic", "instance"])
def test_a_semantic_model_on_coco_annotations(tmp_path, only):
    """Panoptic segments keep their class. Of instances, smaller ones cover larger ones; the rest is background."""
    root = extracted(tmp_path)
    for json_file in (root / "annotations").glob("*.json"):
        if not json_file.name.startswith(only):
            json_file.unlink()
    dataset, space = load_data(root, task="semantic", split="val")
    sample = dataset.with_transform(EvaluationTransform(space, task="semantic"))[1]
    if only == "panoptic":
        assert space.names == ("person", "dog", "flower")
        expected = np.select([panoptic_ids() == i for i in (5, 70000, 300)], [0, 1, 2], 255)
    else:
        assert space.names == ("background", "person", "dog")
        expected = np.zeros(SIZE, int)
        expected[2:6, 2:8] = 2
        expected[:, :2] = 1
        expected[-5:, -1] = 1
    assert np.array_equal(sample["reference"], expected)
    train = dataset.with_transform(TrainTransform(space, task="semantic", size=SIZE, augment=False))[1]
    assert train["class_labels"].tolist() == [0, 1, 2]
    assert np.array_equal(train["mask_labels"].numpy(), [expected == label for label in range(3)])


def test_an_instance_model_on_panoptic_annotations(tmp_path):
    root = extracted(tmp_path)
    (root / "annotations/instances_val2017.json").unlink()
    dataset, space = load_data(root, task="instance", split="val")
    assert space.names == ("person", "dog")
    evaluation = dataset.with_transform(EvaluationTransform(space, task="instance"))
    empty, found = evaluation[0]["reference"], evaluation[1]["reference"]
    assert empty["masks"] == []
    masks = coco_mask.decode(found["masks"]).transpose(2, 0, 1)
    assert np.array_equal(masks, [panoptic_ids() == 5, panoptic_ids() == 70000])
    assert found["labels"].tolist() == [0, 1]
    assert found["iscrowd"].tolist() == [1, 0]


def test_paths_of_label_studio_are_found(tmp_path):
    data = instance_json()
    for entry in data["images"]:
        entry["file_name"] = f"/label-studio/data/upload/3/{entry['file_name']}"
    files = {f"images/{name.rpartition('/')[2]}": content for name, content in IMAGES.items()}
    assert len(load_data(write(tmp_path, files | {"result.json": data}), task="instance")[0]) == 2


def test_images_without_segments_can_be_left_out(tmp_path):
    root = extracted(tmp_path)
    for task in ("panoptic", "instance"):
        assert load_data(root, task=task, split="val", keep_empty=False)[0]["image_id"][:] == [10]


@pytest.mark.parametrize("name", ["labels.json", "photos.json"])
def test_one_json_without_a_split_is_both_splits(tmp_path, name):
    write(tmp_path, {"photos/000000000010.jpg": picture(), "photos/000000000009.jpg": picture()})
    write(tmp_path, {name: instance_json()})
    for split in ("train", "val"):
        assert len(load_data(tmp_path, task="instance", split=split)[0]) == 2


def test_classes_of_a_model_are_matched_by_name(tmp_path):
    root = extracted(tmp_path)
    wanted = LabelSpace("model", ("cat", "dog", "person"))
    dataset, space = load_data(root, task="instance", split="val", label_space=wanted)
    assert space.names == wanted.names
    assert [s["label_id"] for s in dataset[1]["segments"]] == [1, 2, 2]
    dataset, _ = load_data(root, task="panoptic", split="val", label_space=label_space("coco_panoptic"))
    assert [s["label_id"] for s in dataset[1]["segments"]] == [0, 88, 16]  # person, flower, dog of the 133
    with pytest.raises(UnknownClass, match="'person'"):
        load_data(root, task="instance", split="val", label_space=LabelSpace("model", ("dog",)))


@pytest.mark.parametrize("nothing", [None, [], [[1, 2, 3, 4]], "absent"])
def test_annotations_without_a_mask_are_left_out(tmp_path, nothing):
    data = instance_json()
    if nothing == "absent":
        del data["annotations"][0]["segmentation"]
    else:
        data["annotations"][0]["segmentation"] = nothing
    data["annotations"][1]["segmentation"] = [[1, 1, 2, 2], [2, 2, 8, 2, 8, 6]]  # one of its polygons is a line
    root = write(extracted(tmp_path), {"annotations/instances_val2017.json": data})
    rows, _ = load_data(root, task="instance", split="val")
    assert [segment["id"] for row in rows for segment in row["segments"]] == [2, 3]
    for entry in data["annotations"]:
        entry["segmentation"] = []
    write(root, {"annotations/instances_val2017.json": data})
    with pytest.raises(ValueError, match="3 of 3"):
        load_data(root, task="instance", split="val")


def test_training_data_without_segments_is_refused(tmp_path):
    """CVAT exports every mask with iscrowd 1."""
    data = instance_json()
    for entry in data["annotations"]:
        entry["iscrowd"] = 1
    root = write(tmp_path / "cvat", {"images/a.jpg": picture(), "annotations.json": data})
    for entry in data["images"]:
        write(root, {f"images/{entry['file_name']}": picture()})
    with pytest.raises(ValueError, match="crowds_as_instances"):
        load_data(root, task="instance")
    rows, _ = load_data(root, task="instance", crowds_as_instances=True)
    assert [segment["iscrowd"] for row in rows for segment in row["segments"]] == [0, 0, 0]
    write(root, {"annotations.json": data | {"annotations": []}})
    with pytest.raises(ValueError, match="no image has a segment"):
        load_data(root, task="instance")
