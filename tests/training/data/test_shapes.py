"""The synthetic data set: repeatable, with valid COCO panoptic annotations."""

import numpy as np

from eomt.training.data.shapes import CATEGORIES, MIN_PIXELS, draw


def test_images_are_repeatable_and_segments_fit_their_pixels():
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
