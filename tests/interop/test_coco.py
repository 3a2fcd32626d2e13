"""Results of `eomt predict` in other tools: pycocotools opens them, panopticapi's rules hold."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO

from eomt.interop.coco import write_dataset
from tests.predicting import predict

# What the importers read: FiftyOne (fiftyone.utils.coco), CVAT (datumaro's COCO base), Label Studio (label_studio_sdk's
# converter). Fields of other types are errors in datumaro; Label Studio needs each annotation's score.
IMAGE = {"id": int, "file_name": str, "width": int, "height": int}
CATEGORY = {"id": int, "name": str}
ANNOTATION = {"id": int, "image_id": int, "category_id": int, "bbox": list, "area": int, "iscrowd": int, "score": float}


@pytest.mark.parametrize("masks", ["polygons", "rle"])
@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_dataset_opens_in_pycocotools(models, photos, tmp_path, task, masks):
    (photos / "000000000139.png").rename(photos / "harbor.png")  # its id is its name; importers want numbers
    options = () if task == "semantic" else ("--threshold", "0.3")
    assert predict(photos, models[task], tmp_path / "out", "--no-overlays", *options) == 0
    count = write_dataset(tmp_path / "out", tmp_path / "labels.json", masks, score=0.0)
    data = json.loads((tmp_path / "labels.json").read_text())
    for key, fields in (("images", IMAGE), ("categories", CATEGORY), ("annotations", ANNOTATION)):
        for entry in data[key]:
            assert {name: type(entry[name]) for name in fields} == fields
    assert len({a["id"] for a in data["annotations"]}) == count == len(data["annotations"]) > 3
    assert [c["id"] for c in data["categories"]] == [1, 2, 3, 4, 5]  # the model's start at 0
    coco = COCO(tmp_path / "labels.json")
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation)
        assert mask.shape == tuple(coco.imgs[annotation["image_id"]][side] for side in ("height", "width"))
        assert annotation["category_id"] in coco.cats
        assert len(annotation["bbox"]) == 4
        if masks == "rle":
            assert mask.sum() == annotation["area"]
            assert annotation["bbox"] == rle.toBbox(annotation["segmentation"]).tolist()
        else:
            assert all(len(points) >= 6 and len(points) % 2 == 0 for points in annotation["segmentation"])
            assert mask.sum() >= 0.8 * annotation["area"] - 8  # holes are filled, single pixels may go


def test_least_score_is_of_instances(models, photos, tmp_path):
    assert predict(photos, models["instance"], tmp_path / "out", "--no-overlays") == 0
    every = write_dataset(tmp_path / "out", tmp_path / "all.json", "rle", score=0.0)
    scores = sorted(a["score"] for a in json.loads((tmp_path / "all.json").read_text())["annotations"])
    middle = scores[every // 2]
    assert write_dataset(tmp_path / "out", tmp_path / "best.json", "rle", score=middle) == sum(
        score >= middle for score in scores
    )


def test_panoptic_json_keeps_panopticapis_rules(models, photos, tmp_path):
    """What its `pq_compute` asserts of predictions: ids of png and json agree, classes are known."""
    assert predict(photos, models["panoptic"], tmp_path / "out", "--no-overlays", "--threshold", "0.3") == 0
    data = json.loads((tmp_path / "out/panoptic.json").read_text())
    categories = {c["id"]: c for c in data["categories"]}
    assert {c["isthing"] for c in categories.values()} == {0, 1}
    for annotation in data["annotations"]:
        png = np.asarray(Image.open(tmp_path / "out/panoptic" / annotation["file_name"]), np.uint32)
        ids = (png[..., 0] + 256 * png[..., 1] + 256**2 * png[..., 2]).ravel()
        listed = {s["id"]: s for s in annotation["segments_info"]}
        assert set(np.unique(ids).tolist()) - {0} == set(listed)
        assert all(s["category_id"] in categories for s in listed.values())


def test_what_is_no_prediction(tmp_path):
    with pytest.raises(ValueError, match=r"has no images\.json and run\.json; give a folder that eomt predict wrote"):
        write_dataset(tmp_path, tmp_path / "labels.json")
    with pytest.raises(ValueError, match="masks is 'png'; choose from polygons, rle"):
        write_dataset(tmp_path, tmp_path / "labels.json", "png")
    assert not any(tmp_path.iterdir())
