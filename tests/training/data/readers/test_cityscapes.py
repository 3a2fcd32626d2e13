"""Cityscapes semantic, zipped and extracted: label ids 7, 8, 11, … become 0 … 18, the rest is ignored."""

import numpy as np
import pytest

from eomt.configuration.labels import label_space
from eomt.training.data import EvaluationTransform, load_data

from ..synthetic import SIZE, picture, png, write, zipped


def label_ids() -> np.ndarray:
    """Every id from 0 to 33, and 255."""
    values = np.resize(np.arange(34), SIZE)
    values[-1, -1] = 255
    return values


def written(root, as_zip: bool):
    images, ground_truth = {}, {}
    for split, city in (("train", "aachen"), ("train", "bochum"), ("val", "munster"), ("test", "bonn")):
        stem = f"{split}/{city}/{city}_000000_000019"
        images[f"leftImg8bit/{stem}_leftImg8bit.png"] = picture(kind="PNG")
        ground_truth[f"gtFine/{stem}_gtFine_labelIds.png"] = png(label_ids())
        ground_truth[f"gtFine/{stem}_gtFine_instanceIds.png"] = png(label_ids())
        ground_truth[f"gtFine/{stem}_gtFine_polygons.json"] = "{}"
    if as_zip:
        archives = {"leftImg8bit_trainvaltest.zip": images, "gtFine_trainvaltest.zip": ground_truth}
        return write(root, {name: zipped(files) for name, files in archives.items()})
    return write(root, images | ground_truth)


@pytest.mark.parametrize("as_zip", [True, False])
def test_semantic(tmp_path, as_zip):
    root = written(tmp_path, as_zip)
    dataset, space = load_data(root, task="semantic", split="train")
    assert space is label_space("cityscapes_semantic")
    assert dataset["image_id"][:] == ["aachen_000000_000019", "bochum_000000_000019"]
    reference = dataset.with_transform(EvaluationTransform(space, task="semantic"))[0]["reference"]
    kept = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    expected = np.full(SIZE, 255)
    for label, i in enumerate(kept):
        expected[label_ids() == i] = label
    assert np.array_equal(reference, expected)
    assert len(load_data(root, task="semantic", split="val")[0]) == 1


def test_other_tasks_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"cityscapes data has ground truth for semantic, not for 'panoptic'"):
        load_data(written(tmp_path, as_zip=False), task="panoptic")


def test_missing_truth(tmp_path):
    root = written(tmp_path, as_zip=False)
    (root / "gtFine/val/munster/munster_000000_000019_gtFine_labelIds.png").unlink()
    with pytest.raises(ValueError, match=r"there is no val/munster/munster_000000_000019_gtFine_labelIds.png"):
        load_data(root, task="semantic", split="val")
