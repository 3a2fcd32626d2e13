"""Cityscapes semantic, zipped and extracted: ids 7, 8, 11, … are labels 0 … 18, the others are ignored."""

import numpy as np
import pytest

from eomt.configuration.labels import label_space
from eomt.training.data import EvaluationTransform, load_data

from .synthetic import SIZE, cityscapes, label_ids


@pytest.mark.parametrize("as_zip", [True, False])
def test_semantic(tmp_path, as_zip):
    root = cityscapes(tmp_path, as_zip)
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
