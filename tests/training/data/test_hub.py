"""Data sets of the `datasets` library: images and label maps in columns, splits by name, pixels read when needed."""

import pickle

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, Features, Image, Value

from eomt.training.data import EvaluationTransform, load_data

from .synthetic import SIZE, picture, png

LABELS = np.where(np.arange(SIZE[1])[None].repeat(SIZE[0], 0) < 5, 0, 4)


def table(count: int) -> Dataset:
    columns = {
        "image": [{"bytes": picture(i), "path": None} for i in range(count)],
        "annotation": [{"bytes": png(LABELS), "path": None}] * count,
        "scene": ["street"] * count,
    }
    features = Features({"image": Image(), "annotation": Image(), "scene": Value("string")})
    return Dataset.from_dict(columns, features=features)


def test_a_data_set_of_the_datasets_library(tmp_path):
    DatasetDict(train=table(3), validation=table(2)).save_to_disk(tmp_path / "saved")
    for split, count in (("train", 3), ("val", 2)):
        dataset, space = load_data(tmp_path / "saved", task="semantic", split=split)
        assert len(dataset) == count
        assert space.names == ("class_0", "class_4")
        assert len(pickle.dumps(dataset[0])) < 1000, "rows hold no pixels"
        sample = dataset.with_transform(EvaluationTransform(space, task="semantic"))[1]
        assert sample["image"].shape == (3, *SIZE)
        assert np.array_equal(sample["reference"], LABELS // 4)
    _, space = load_data(tmp_path / "saved", task="semantic", class_names={0: "road", 4: "sky"})
    assert space.names == ("road", "sky")


def test_parquet_files_as_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for split, count in (("train", 3), ("validation", 2)):
        table(count).to_parquet(tmp_path / f"repository/data/{split}-00000-of-00001.parquet")
    dataset, space = load_data(tmp_path / "repository", task="semantic", split="val")
    assert len(dataset) == 2
    reference = dataset.with_transform(EvaluationTransform(space, task="semantic"))[1]["reference"]
    assert np.array_equal(reference, LABELS // 4)


@pytest.mark.parametrize("columns", [["image", "scene"], ["annotation"]])
def test_an_image_and_a_label_map_are_needed(tmp_path, columns):
    table(2).select_columns(columns).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match=columns[0]):
        load_data(tmp_path / "saved", task="semantic")
