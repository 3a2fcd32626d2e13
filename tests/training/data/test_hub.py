"""Data sets of the `datasets` library: images and label maps in columns, splits by name, no pixels in rows."""

import pickle

import numpy as np
import PIL.Image
import pytest
from datasets import Dataset, DatasetDict, Features, Image, Value
from pycocotools import mask as coco_mask

from eomt.configuration.labels import LabelSpace
from eomt.training.data import EvaluationTransform, TrainTransform, load_data, make_row

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


def test_parquet_files_of_the_hub_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for split, count in (("train", 3), ("validation", 2)):
        table(count).to_parquet(tmp_path / f"repository/data/{split}-00000-of-00001.parquet")
    dataset, space = load_data(tmp_path / "repository", task="semantic", split="val")
    assert len(dataset) == 2
    reference = dataset.with_transform(EvaluationTransform(space, task="semantic"))[1]["reference"]
    assert np.array_equal(reference, LABELS // 4)


@pytest.mark.parametrize("columns", [["image", "scene"], ["annotation"]])
def test_tables_without_images_or_label_maps_are_refused(tmp_path, columns):
    table(2).select_columns(columns).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match=columns[0]):
        load_data(tmp_path / "saved", task="semantic")


def test_rows_of_a_stream():
    """Label maps, run lengths and polygons of any data set, without `load_data`."""
    space = LabelSpace("mine", ("road", "sky"))
    road = coco_mask.encode(np.asfortranarray(LABELS == 0, np.uint8))
    shapes = [{"size": list(SIZE), "counts": road["counts"].decode()}, [[0, 0, 4, 0, 4, 4, 0, 4]]]

    def semantic(row):
        return EvaluationTransform(space, task="semantic").row(
            make_row(row["image"], row["annotation"], layout="semantic", file_name=row["scene"])
        )

    def instance(row):
        segments = [{"label_id": label, "shape": shape} for label, shape in enumerate(shapes)]
        made = make_row(row["image"], layout="instance", segments=segments)
        return TrainTransform(space, task="instance", size=SIZE, augment=False).row(made)

    stream = table(2).map(lambda row: {"annotation": PIL.Image.fromarray((LABELS // 4).astype(np.uint8))})
    stream = stream.to_iterable_dataset(num_shards=2)
    samples = list(stream.map(semantic, remove_columns=["annotation", "scene"]))
    assert [sample["file_name"] for sample in samples] == ["street", "street"]
    for sample in samples:
        assert np.array_equal(sample["reference"], LABELS // 4)
    for sample in stream.map(instance, remove_columns=stream.column_names):
        assert sample["class_labels"].tolist() == [0, 1]
        assert np.array_equal(sample["mask_labels"][0], LABELS == 0)
        assert sample["mask_labels"][1].sum() == 16


@pytest.mark.parametrize("shape", [[[0, 0, 1]], {"size": list(SIZE), "counts": [1, 2]}])
def test_malformed_shapes_of_rows_are_refused(shape):
    with pytest.raises(ValueError, match=r"3|add up"):
        make_row("a.png", layout="instance", segments=[{"label_id": 0, "shape": shape}])
