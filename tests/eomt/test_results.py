"""Names of found images, label PNGs, and atomic writing."""

import numpy as np

from eomt.configuration.labels import VOID_VALUES
from eomt.predict import find_images
from eomt.results import label_png
from eomt.training.files import write_json


def test_found_images_have_unique_names(tmp_path):
    for name in ("a/1.png", "a/2.JPG", "b/1.png", "b/1.jpg", "b/c/3.webp", "b/note.txt", "b/.hidden.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert list(find_images([tmp_path / "a"])) == ["1", "2"]
    assert list(find_images([tmp_path / "b"])) == ["1_jpg", "1_png", "c/3"]
    (tmp_path / "b/1_jpg.png").touch()
    assert len(find_images([tmp_path / "b"])) == 4  # 1_jpg.png has the name that 1.jpg got
    (tmp_path / "b/1_jpg.png").unlink()
    assert list(find_images([tmp_path / "a/1.png", tmp_path / "b/1.png"])) == ["a/1", "b/1"]
    assert list(find_images([tmp_path / "a", tmp_path / "a/1.png"])) == ["1", "2"]
    assert list(find_images([f"{tmp_path}/**/*.png"])) == ["a/1", "b/1"]
    assert list(find_images([tmp_path], exclude=tmp_path / "b")) == ["a/1", "a/2"]
    assert find_images([tmp_path / "b/note.txt"])["note"].name == "note.txt"  # any suffix, if given by name


def test_label_pngs_have_the_ids_of_the_data_set(tmp_path):
    labels = np.array([[0, 1, -1, 255]])
    assert np.asarray(label_png(labels, [7, 33])).tolist() == [[7, 33, VOID_VALUES[1], VOID_VALUES[1]]]
    wide = np.asarray(label_png(labels, [7, 300]))
    assert wide.dtype == np.uint16
    assert wide.tolist() == [[7, 300, 65535, 65535]]


def test_nan_and_infinity_become_null(tmp_path):
    write_json(tmp_path / "a.json", {"ap": float("nan"), "of": [np.float32(0.5), float("inf")]})
    assert (tmp_path / "a.json").read_text() == '{"ap": null, "of": [0.5, null]}\n'
