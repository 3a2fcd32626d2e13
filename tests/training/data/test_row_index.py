"""The index of a large data set: the same rows, read once, again when anything changes."""

import json
import multiprocessing
import os
import shutil

import datasets
import pytest
from PIL import Image

from eomt.training.data import load_data, readers, row_index
from eomt.training.data.readers import coco


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Two images in COCO's instance format, indexed however small; the cache is the test's own."""
    monkeypatch.setattr(row_index, "MIN_BYTES", 0)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "data"
    (folder / "train2017").mkdir(parents=True)
    for name in ("1.png", "2.png"):
        Image.new("RGB", (8, 8)).save(folder / "train2017" / name)
    write(folder, names=("1.png", "2.png"))
    return folder


def write(folder, names):
    images = [{"id": i, "file_name": name, "height": 8, "width": 8} for i, name in enumerate(names, 1)]
    annotations = [
        {"id": i, "image_id": i, "category_id": 7, "segmentation": [[0, 0, 4, 0, 4, 4]], "area": 8, "iscrowd": 0}
        for i in range(1, len(names) + 1)
    ]
    categories = [{"id": 7, "name": "shape"}]
    (folder / "annotations").mkdir(exist_ok=True)
    file = folder / "annotations" / "instances_train2017.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))


def load(folder, **options):
    return load_data(folder, "coco", task="instance", split="train", **options)


def test_the_index_holds_what_the_reader_found(data, monkeypatch):
    monkeypatch.setattr(row_index, "MIN_BYTES", 1 << 40)
    expected, labels = load(data)
    monkeypatch.setattr(row_index, "MIN_BYTES", 0)
    first, _ = load(data)
    monkeypatch.setattr(coco.Rows, "add", None)  # nothing is read again
    again, space = load(data)
    assert first[:] == again[:] == expected[:]
    assert again.features == expected.features
    assert space == labels
    assert space.dataset_id_to_label == {7: 0}
    assert again.cache_files  # mapped, not in memory


def test_a_change_is_another_index(data):
    assert len(load(data)[0]) == 2
    write(data, names=("1.png",))
    assert len(load(data)[0]) == 1
    Image.new("RGB", (8, 8)).save(data / "train2017" / "3.png")
    write(data, names=("1.png", "3.png"))
    assert load(data)[0]["file_name"][:] == ["1.png", "3.png"]


def test_nothing_is_kept_of_faulty_data_nor_where_nothing_can_be_written(data, monkeypatch, tmp_path, caplog):
    (data / "train2017" / "2.png").unlink()
    with pytest.raises(ValueError, match=r"2\.png"):
        load(data)
    assert [path for path in (tmp_path / "cache" / "eomt").iterdir() if path.suffix != ".lock"] == []
    write(data, names=("1.png",))
    (tmp_path / "file").touch()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file")
    assert len(load(data)[0]) == 1
    assert "no index can be kept in" in caplog.text


def test_a_relative_path_is_of_its_working_directory(data, monkeypatch, tmp_path):
    other = tmp_path / "other" / "data"
    shutil.copytree(data, other)
    first = data / "annotations" / "instances_train2017.json"
    times = (first.stat().st_atime_ns, first.stat().st_mtime_ns)
    os.utime(other / "annotations" / first.name, ns=times)
    monkeypatch.chdir(tmp_path)
    assert load("data")[0]["image"][0] == str(data / "train2017" / "1.png")
    monkeypatch.chdir(tmp_path / "other")
    assert load("data")[0]["image"][0] == str(other / "train2017" / "1.png")
    monkeypatch.setattr(coco.Rows, "add", None)  # the index is used
    assert len(load(data)[0]) == 2


def test_an_error_of_the_data_is_not_one_of_the_index(data, monkeypatch, caplog):
    def fails(*_):
        reads.append(1)
        raise OSError("the disk is broken")

    reads = []
    monkeypatch.setitem(readers.READERS, "coco", readers.READERS["coco"]._replace(read=fails))
    with pytest.raises(OSError, match="the disk is broken"):
        load(data)
    assert len(reads) == 1
    assert "no index" not in caplog.text


def test_an_index_that_cannot_be_written_is_done_without(data, monkeypatch, caplog):
    def fails(*_):
        raise OSError("disk full")

    def counted(*arguments):
        reads.append(1)
        return coco.read_coco(*arguments)

    reads = []
    monkeypatch.setitem(readers.READERS, "coco", readers.READERS["coco"]._replace(read=counted))
    monkeypatch.setattr(row_index, "_write", fails)
    assert len(load(data)[0]) == 2
    assert len(reads) == 1
    assert "(disk full)" in caplog.text


def _count(folder, cache, numbers):
    row_index.MIN_BYTES, datasets.config.HF_DATASETS_CACHE = 0, cache
    read = coco.read_coco

    def counted(*arguments):
        with open(numbers, "a") as file:
            file.write(f"{os.getpid()}\n")
        return read(*arguments)

    readers.READERS["coco"] = readers.READERS["coco"]._replace(read=counted)
    assert len(load(folder)[0]) == 2


def test_one_of_several_processes_reads(data, tmp_path):
    context = multiprocessing.get_context("spawn")  # pytest's process has threads, which do not outlive a fork
    arguments = (data, tmp_path / "cache", tmp_path / "numbers")
    processes = [context.Process(target=_count, args=arguments) for _ in range(2)]
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join(300)
            assert process.exitcode == 0
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
                process.join()
    assert len((tmp_path / "numbers").read_text().split()) == 1
