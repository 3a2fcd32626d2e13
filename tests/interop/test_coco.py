"""Results of `eomt predict` in other tools: pycocotools opens them, panopticapi's rules hold."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO

from eomt.interop.coco import outlines, write_dataset
from tests.cli.test_predict import models, photos, predict  # noqa: F401

# What the importers document: FiftyOne (fiftyone.utils.coco), CVAT (COCO 1.0), Label Studio (import coco).
IMAGE = {"id": int, "file_name": str, "width": int, "height": int}
CATEGORY = {"id": int, "name": str}
ANNOTATION = {"id": int, "image_id": int, "category_id": int, "bbox": list, "area": int, "iscrowd": int}


@pytest.mark.parametrize("masks", ["polygons", "rle"])
@pytest.mark.parametrize("task", ["panoptic", "instance"])
def test_dataset_opens_in_pycocotools(models, photos, tmp_path, task, masks):  # noqa: F811
    (photos / "000000000139.png").rename(photos / "harbor.png")  # its id is its name; importers want numbers
    assert predict(photos, models[task], tmp_path / "out", "--no-overlays", "--threshold", "0.3") == 0
    count = write_dataset(tmp_path / "out", tmp_path / "labels.json", masks, score=0.0)
    data = json.loads((tmp_path / "labels.json").read_text())
    for key, fields in (("images", IMAGE), ("categories", CATEGORY), ("annotations", ANNOTATION)):
        for entry in data[key]:
            assert all(isinstance(entry[name], kind) for name, kind in fields.items())
    assert len({a["id"] for a in data["annotations"]}) == count == len(data["annotations"]) > 3
    coco = COCO(tmp_path / "labels.json")
    rows = "panoptic.json" if task == "panoptic" else "instances.json"
    assert len(coco.anns) <= sum(
        len(a.get("segments_info", [0]))
        for a in (lambda d: d["annotations"] if task == "panoptic" else d)(
            json.loads((tmp_path / "out" / rows).read_text())
        )
    )
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation)
        assert mask.shape == tuple(coco.imgs[annotation["image_id"]][side] for side in ("height", "width"))
        if masks == "rle":
            assert mask.sum() == annotation["area"]
            assert annotation["bbox"] == rle.toBbox(annotation["segmentation"]).tolist()
        else:
            assert isinstance(annotation["segmentation"][0], list)
            assert mask.sum() >= 0.8 * annotation["area"] - 8  # holes are filled, single pixels may go


def test_outlines_are_the_mask():
    rng = np.random.default_rng(0)
    coarse = Image.fromarray((rng.random((6, 8)) > 0.5).astype(np.uint8) * 255)
    mask = (np.asarray(coarse.resize((160, 120), Image.Resampling.BICUBIC)) > 127).astype(np.uint8)
    mask[:, :3] = 1  # up to the border
    shapes = rle.frPyObjects(outlines(mask), *mask.shape)
    filled = rle.decode(rle.merge(shapes))
    from scipy.ndimage import binary_fill_holes

    parts = binary_fill_holes(np.pad(mask, 1))[1:-1, 1:-1]
    assert (filled != parts).mean() < 0.02
    assert outlines(np.zeros((5, 5))) == []


def test_panoptic_json_keeps_panopticapis_rules(models, photos, tmp_path):  # noqa: F811
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
    with pytest.raises(ValueError, match=r"neither panoptic\.json nor instances\.json; give what eomt predict wrote"):
        write_dataset(tmp_path, tmp_path / "labels.json")
    with pytest.raises(ValueError, match="masks is 'png'; choose from polygons, rle"):
        write_dataset(tmp_path, tmp_path / "labels.json", "png")
    assert not any(tmp_path.iterdir())
