"""ADE20K, semantic and panoptic, zipped and extracted: labels and instances as in the authors' code."""

import numpy as np
import pytest

from eomt.configuration.labels import LabelSpace, label_space
from eomt.training.data import EvaluationTransform, TrainTransform, load_data

from .synthetic import SIZE, picture, png, write, zipped

MAIN, THINGS = "ADEChallengeData2016", "annotations_instance"


def semantic() -> np.ndarray:
    values = np.zeros(SIZE, int)
    values[:4] = 1  # wall, stuff
    values[4:8] = 8  # bed, a thing
    return values


def instances() -> np.ndarray:
    """Red is the category (1 is bed, the first thing), green the instance."""
    rgb = np.zeros((*SIZE, 3), int)
    rgb[4:8, :8] = (1, 1, 0)
    rgb[4:8, 8:] = (1, 2, 0)
    rgb[3, 0] = (100, 3, 0)  # the last thing, over the wall
    return rgb


def files() -> tuple[dict, dict]:
    main, things = {}, {}
    for folder, stem in (("training", "ADE_train_00000001"), ("validation", "ADE_val_00000001")):
        main[f"{MAIN}/images/{folder}/{stem}.jpg"] = picture()
        main[f"{MAIN}/annotations/{folder}/{stem}.png"] = png(semantic())
        things[f"{THINGS}/{folder}/{stem}.png"] = png(instances())
    main[f"{MAIN}/images/training/ADE_train_00000002.jpg"] = picture(2)
    main[f"{MAIN}/annotations/training/ADE_train_00000002.png"] = png(np.zeros(SIZE, int))
    things[f"{THINGS}/training/ADE_train_00000002.png"] = png(np.zeros((*SIZE, 3), int))
    return main, things


def ade20k(root, as_zip: bool = False):
    main, things = files()
    if as_zip:
        return write(root, {f"{MAIN}.zip": zipped(main), f"{THINGS}.zip": zipped(things)})
    return write(root, main | things)


@pytest.mark.parametrize("as_zip", [True, False])
def test_semantic(tmp_path, as_zip):
    root = ade20k(tmp_path, as_zip)
    dataset, space = load_data(root, task="semantic", split="train")
    assert space is label_space("ade20k_semantic")
    assert dataset["file_name"][:] == ["ADE_train_00000001.jpg", "ADE_train_00000002.jpg"]
    assert len(load_data(root, task="semantic", split="train", keep_empty=False)[0]) == 1
    reference = dataset.with_transform(EvaluationTransform(space, task="semantic"))[0]["reference"]
    assert np.array_equal(reference, np.where(semantic() == 0, 255, semantic() - 1))
    train = dataset.with_transform(TrainTransform(space, task="semantic", size=SIZE, augment=False))
    assert train[0]["class_labels"].tolist() == [0, 7]
    assert train[1]["mask_labels"].shape == (0, *SIZE)


@pytest.mark.parametrize("as_zip", [True, False])
def test_panoptic(tmp_path, as_zip):
    dataset, space = load_data(ade20k(tmp_path, as_zip), task="panoptic", split="val")
    assert len(space.stuff_label_ids) == 50
    reference = dataset.with_transform(EvaluationTransform(space, task="panoptic"))[0]["reference"]
    ids, info = reference["segmentation"], {s["id"]: s["label_id"] for s in reference["segments_info"]}
    assert len(info) == 4
    assert info[ids[0, 0]] == space.label2id["wall"] == 0
    assert info[ids[4, 0]] == info[ids[4, 15]] == space.label2id["bed"] == 7
    assert ids[4, 0] != ids[4, 15]
    assert info[ids[3, 0]] == space.label2id["flag"] == 149  # category 100
    assert (ids[8:] == -1).all()
    assert ids[3, 1] == ids[0, 0]


def test_panoptic_in_a_models_order_of_classes(tmp_path):
    """A model with things first and one more class has the same segments, under its own labels."""
    own = label_space("ade20k_panoptic")
    order = sorted(range(own.num_labels), key=lambda label: label in own.stuff_label_ids)
    names = ("kiosk", *(own.names[label] for label in order))
    model = LabelSpace("model", names, tuple(range(101, 151)))
    dataset, space = load_data(ade20k(tmp_path), task="panoptic", split="val", label_space=model)
    reference = dataset.with_transform(EvaluationTransform(space, task="panoptic"))[0]["reference"]
    ids, info = reference["segmentation"], {s["id"]: s["label_id"] for s in reference["segments_info"]}
    assert info[ids[0, 0]] == names.index("wall") == 101
    assert info[ids[4, 0]] == info[ids[4, 15]] == names.index("bed") == 1
    assert info[ids[3, 0]] == names.index("flag") == 100
    assert len(info) == 4
    assert (ids[8:] == -1).all()
