"""Image files found, label pngs coded, outputs written atomically."""

import csv

import numpy as np
import pytest
from PIL import Image

from eomt.configuration.labels import LabelSpace
from eomt.inference.encoding import VOID_LABELS, label_png
from eomt.inference.image_files import find_images
from eomt.inference.prediction_files import Results, image_ids_by_name
from eomt.inference.pseudo_labels import write_dataset
from eomt.inference.result_formats import write_formats
from eomt.inference.writing import write_atomic, write_json


def test_names_of_found_images(tmp_path):
    for name in ("a/1.png", "a/2.JPG", "b/1.png", "b/1.jpg", "b/c/3.webp", "b/note.txt", "b/.hidden.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert list(find_images([tmp_path / "a"])) == ["1", "2"]
    assert list(find_images([tmp_path / "b"])) == ["1_jpg", "1_png", "c/3"]
    assert list(find_images([tmp_path / "a/1.png", tmp_path / "b/1.png"])) == ["a/1", "b/1"]
    assert list(find_images([tmp_path / "a", tmp_path / "a/1.png"])) == ["1", "2"]  # once each
    assert list(find_images([f"{tmp_path}/**/*.png"])) == ["a/1", "b/1"]
    assert list(find_images([tmp_path], exclude=tmp_path / "b")) == ["a/1", "a/2"]
    assert find_images([tmp_path / "b/note.txt"])["note"].name == "note.txt"  # named outright


def test_label_png_has_the_data_sets_ids(tmp_path):
    labels = np.array([[0, 1, -1, 255]])
    assert np.asarray(label_png(labels, [7, 33])).tolist() == [[7, 33, VOID_LABELS[1], VOID_LABELS[1]]]
    wide = np.asarray(label_png(labels, [7, 300]))
    assert wide.dtype == np.uint16
    assert wide.tolist() == [[7, 300, 65535, 65535]]


def test_atomic_writing_leaves_nothing_behind(tmp_path):
    def fails(part):
        part.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomic(tmp_path / "a" / "b.json", fails)
    assert list((tmp_path / "a").iterdir()) == []


def predicted(output, task, files):
    """A run's results: each (file name, columns that are class 1) is an image of 4 x 8 pixels."""
    for file in files:
        (output.parent / "images" / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 4)).save(output.parent / "images" / file)
    images = find_images([output.parent / "images" / file for file in files])
    ids = image_ids_by_name(images)
    results = Results(output, task, LabelSpace("test", ("a", "b")))
    for name, file in images.items():
        ground = np.zeros((4, 8), np.int64)
        ground[:, : files[file.name]] = 1
        segments = [{"id": 1, "label_id": 1, "score": 0.9}]
        prediction = {"segmentation": ground, "segments_info": segments}
        results.write(name, file.name, prediction, ids[name])
    results.finish(images)


def areas(output):
    write_formats(output, "panoptic", ["csv"])
    with (output / "segments.csv").open() as file:
        return {row["file_name"]: int(row["area"]) for row in csv.DictReader(file)}


@pytest.mark.parametrize("name", ["1", "a"])
def test_segments_are_the_images_own(tmp_path, name):
    output = tmp_path / "out"
    predicted(output, "panoptic", {f"{name}.jpg": 1})
    assert areas(output) == {f"{name}.jpg": 4}
    files = {f"{name}.jpg": 2, f"{name}.png": 3, f"{name}_jpg.png": 4}
    predicted(output, "panoptic", files)  # beside the earlier run's record
    assert areas(output) == {file: 4 * columns for file, columns in files.items()}


def test_images_whose_labels_would_be_one_file(tmp_path):
    message = r"a\.jpg and a\.png would both have their labels in a\.{}; rename one of them"
    for task in ("panoptic", "semantic"):
        predicted(tmp_path / task, task, {"a.jpg": 1, "a.png": 2})
    with pytest.raises(ValueError, match=message.format("txt")):
        write_formats(tmp_path / "panoptic", "panoptic", ["csv", "yolo"])
    assert not (tmp_path / "panoptic/segments.csv").exists()
    with pytest.raises(ValueError, match=message.format("png")):
        write_dataset(tmp_path / "semantic", tmp_path / "data", "semantic", {}, 0.5)
    assert not (tmp_path / "data").exists()


def test_nan_and_infinity_become_null(tmp_path):
    write_json(tmp_path / "a.json", {"ap": float("nan"), "of": [np.float32(0.5), float("inf")]})
    assert (tmp_path / "a.json").read_text() == '{"ap": null, "of": [0.5, null]}\n'
