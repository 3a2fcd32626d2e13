"""The synthetic data set: valid COCO panoptic annotations, repeatable, and read back as written."""

import json

import numpy as np

from eomt.training.data import EvaluationTransform, load_data
from eomt.training.data.shapes import CATEGORIES, MIN_PIXELS, draw, make_shapes


def test_every_picture_is_repeatable_and_its_segments_are_its_pixels():
    for i in range(20):
        pixels, ids, segments = draw(np.random.default_rng((0, i)), (72, 112))
        again = draw(np.random.default_rng((0, i)), (72, 112))
        assert pixels.dtype == np.uint8
        assert pixels.shape == (*ids.shape, 3)
        assert np.array_equal(pixels, again[0])
        assert np.array_equal(ids, again[1])
        assert {s["id"] for s in segments} == set(np.unique(ids)) - {0}
        for s in segments:
            assert s["area"] == (ids == s["id"]).sum() >= MIN_PIXELS
            assert 1 <= s["category_id"] <= len(CATEGORIES)


def test_written_and_read_back(tmp_path):
    make_shapes(tmp_path, train=3, val=2, size=(40, 60))
    dataset, space = load_data(tmp_path, task="panoptic", split="val")
    assert len(dataset) == 2
    assert space.names[:2] == ("circle", "square")
    assert space.stuff_label_ids == (4, 5, 6, 7)
    annotations = json.loads((tmp_path / "annotations/panoptic_val.json").read_text())
    sample = dataset.with_transform(EvaluationTransform(space, task="panoptic"))[1]
    pixels, ids, segments = draw(np.random.default_rng((0, 1_000_001)), (40, 60))
    assert np.array_equal(sample["image"].permute(1, 2, 0).numpy(), pixels)
    assert np.array_equal(
        np.where(sample["reference"]["segmentation"] < 0, 0, sample["reference"]["segmentation"]), ids
    )
    assert [s["label_id"] for s in sample["reference"]["segments_info"]] == [s["category_id"] - 1 for s in segments]
    assert annotations["annotations"][1]["segments_info"] == segments
