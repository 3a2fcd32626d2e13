"""The cache of the rows of large COCO data sets: the same rows, read once, and again after a change."""

import datasets
import pytest

from eomt.training.data import load_data, row_cache

from .synthetic import instance_json, picture, write

FILE = "annotations/instances_train2017.json"


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Two images in COCO's instance format, cached at any size, in a cache of the test."""
    monkeypatch.setattr(row_cache, "MIN_BYTES", 0)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    images = {f"train2017/{entry['file_name']}": picture() for entry in instance_json()["images"]}
    return write(tmp_path / "data", images | {FILE: instance_json()})


def test_the_cache_holds_the_rows_of_the_reader(data, monkeypatch):
    monkeypatch.setattr(row_cache, "MIN_BYTES", 1 << 40)
    expected, labels = load_data(data, task="instance")
    monkeypatch.setattr(row_cache, "MIN_BYTES", 0)
    first, _ = load_data(data, task="instance")
    monkeypatch.setattr(row_cache, "read_coco", None)  # nothing is read again
    monkeypatch.chdir(data.parent)
    second, space = load_data(data.name, task="instance")
    assert first[:] == second[:] == expected[:]
    assert second.features == expected.features
    assert space == labels
    assert space.dataset_id_to_label == {1: 0, 18: 1}
    assert second.cache_files  # mapped, not in memory


def test_changed_data_is_read_again(data):
    assert len(load_data(data, task="instance")[0]) == 2
    assert len(load_data(data, task="instance", keep_empty=False)[0]) == 1
    assert {s["iscrowd"] for s in load_data(data, task="instance", crowds_as_instances=True)[0][1]["segments"]} == {0}
    changed = instance_json()
    del changed["images"][1]
    write(data, {FILE: changed})
    assert len(load_data(data, task="instance")[0]) == 1
    wanted = load_data(data, task="instance")[1]
    (data / "train2017/000000000010.jpg").rename(data / "train2017/1.jpg")
    with pytest.raises(ValueError, match=r"000000000010\.jpg"):
        load_data(data, task="instance")
    changed["images"][0]["file_name"] = "1.jpg"
    write(data, {FILE: changed})
    assert load_data(data, task="instance", label_space=wanted)[0]["file_name"][:] == ["1.jpg"]
