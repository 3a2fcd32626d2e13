"""Damaged data: each kind is a `ValueError` that names the value, before training if possible."""

import io
import json
import os
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from eomt.training.data import EvaluationTransform, load_data
from tests.models import turned_png

from .synthetic import SIZE, cityscapes, extracted, panoptic_ids, panoptic_png, picture, png, write, zipped
from .test_ade20k import MAIN, THINGS, ade20k

PANOPTIC, INSTANCE = "annotations/panoptic_val2017.json", "annotations/instances_val2017.json"
IMAGE, PNG = "val2017/000000000010.jpg", "annotations/panoptic_val2017/000000000010.png"
LABELS = png(np.zeros(SIZE))
DATA = {  # format: files or a function that writes them, task
    "panoptic": (extracted, "panoptic"),
    "instance": (extracted, "instance"),
    "semantic": ({"images/a.jpg": picture(), "labels/a.png": LABELS}, "semantic"),
    "yolo": ({"images/a.jpg": picture(), "labels/a.txt": "0 0 0 1 0 1 1", "data.yaml": "names: [cat]"}, "instance"),
    "cityscapes": (cityscapes, "semantic"),
    "ade20k": (ade20k, "semantic"),
    "ade20k panoptic": (ade20k, "panoptic"),
}


def segment(**change):
    return lambda data: data["annotations"][0]["segments_info"][1].update(change)


def entry(key: str, **change):
    return lambda data: data[key][0].update(change)


def other_pixel() -> bytes:
    ids = panoptic_ids()
    ids[0, 0] = 1234
    return panoptic_png(ids)


def bomb() -> bytes:
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", b"\0" * 10))
    parts = (struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


DAMAGE = [  # format, file, its new content (None: deleted) or a function that changes its JSON, the value in the error
    ("panoptic", PANOPTIC, entry("annotations", image_id=77), "77"),
    ("panoptic", PANOPTIC, entry("annotations", file_name="../../etc/passwd"), "../../etc/passwd"),
    ("panoptic", PANOPTIC, entry("annotations", file_name="no.png"), "no.png"),
    ("panoptic", PANOPTIC, lambda data: data["annotations"].append(data["annotations"][0]), "image 10"),
    ("panoptic", PANOPTIC, segment(category_id=7), "category 7"),
    ("panoptic", PANOPTIC, segment(id=300), "300"),
    ("panoptic", PANOPTIC, segment(id=0), "segment 0"),
    ("panoptic", PANOPTIC, segment(iscrowd="0"), "'0'"),
    ("panoptic", PANOPTIC, entry("images", file_name="/etc/passwd"), "/etc/passwd"),
    ("panoptic", PANOPTIC, entry("images", file_name="gone.jpg"), "gone.jpg"),
    ("panoptic", PANOPTIC, entry("images", id=9), "image 9"),
    ("panoptic", PANOPTIC, entry("images", id=2**63), str(2**63)),
    ("panoptic", PANOPTIC, entry("categories", id=1), "1"),
    ("panoptic", PANOPTIC, entry("categories", isthing="true"), "'true'"),
    ("panoptic", PANOPTIC, lambda data: data.pop("categories"), "'categories'"),
    ("panoptic", PANOPTIC, "{cut", "panoptic_val2017.json"),
    ("panoptic", PNG, other_pixel(), "1234"),
    ("instance", INSTANCE, entry("annotations", segmentation=[[1, 2, 3, 4, 5, 6, 7]]), "not 7"),
    ("instance", INSTANCE, entry("annotations", segmentation={"size": [5, 5], "counts": [25]}), "[5, 5]"),
    ("instance", INSTANCE, entry("annotations", segmentation={"size": [12, 16], "counts": [3]}), "3 pixels"),
    ("instance", INSTANCE, entry("annotations", segmentation=[[0, 0, "a", 1, 1, 1]]), "annotation 1"),
    ("instance", INSTANCE, entry("annotations", segmentation=[[0, 0, 161, 0, 1, 1]]), "161"),
    ("instance", INSTANCE, entry("annotations", category_id=99), "category 99"),
    ("instance", INSTANCE, entry("annotations", id=2), "annotation 2"),
    ("instance", INSTANCE, entry("annotations", image_id=5), "id 5"),
    ("instance", INSTANCE, entry("categories", name="person"), "'person'"),
    ("instance", IMAGE, picture(size=(20, 30)), "20×30"),
    ("semantic", "images/a.jpg", picture()[:300], "images/a.jpg"),
    ("semantic", "images/a.jpg", picture(size=(20, 30)), "20×30"),
    ("semantic", "images/a.png", picture(kind="PNG"), "images/a.png"),
    ("semantic", "masks/a.png", LABELS, "masks/a.png"),
    ("semantic", "images/b.jpg", picture(), "images/b.jpg"),
    ("semantic", "class_dict.csv", "road,0,10,300\n", "300"),
    ("semantic", "class_dict.csv", "road,0,10,30\ncar,0,10,30\n", "'road'"),
    ("semantic", "classes.txt", "\nsky\n", "value 0"),
    ("semantic", "labels/a.png", png(np.full((*SIZE, 3), (1, 2, 3))), "class_dict.csv"),
    ("yolo", "labels/a.txt", "2 0 0 1 0 1 1", "class 2"),
    ("yolo", "labels/a.txt", "0 0.5 0.5 0.1 0.1", "not 4"),
    ("yolo", "labels/a.txt", "\n0 0 0 20 0 20 20", "line 2"),
    ("yolo", "labels/a.txt", "cat 0 0 1 0 1 1", "'cat'"),
    ("yolo", "labels/a.txt", "0 0 0 1 0 1 nan", "line 1"),
    ("yolo", "data.yaml", "nc: 2", "data.yaml"),
    ("yolo", "data.yaml", "names: " + "[" * 3000 + "]" * 3000, "data.yaml"),
    ("yolo", "data.yaml", "a: &a [x, x]\nb: &b [*a, *a]\nnames: [*b, *b]", "list"),
    ("yolo", "images/a.jpg", bomb(), "images/a.jpg"),
    ("ade20k", f"{MAIN}/annotations/validation/ADE_val_00000001.png", None, "ADE_val_00000001"),
    ("ade20k", f"{MAIN}/annotations/validation/ADE_val_00000001.png", png(np.full(SIZE, 151)), "151"),
    ("ade20k panoptic", f"{THINGS}/validation/ADE_val_00000001.png", None, "annotations_instance"),
    ("cityscapes", "gtFine/val/munster/munster_000000_000019_gtFine_labelIds.png", None, "munster_000000_000019"),
]


@pytest.mark.parametrize(("kind", "file", "damage", "value"), DAMAGE)
def test_damaged_data_is_named(tmp_path, kind, file, damage, value):
    files, task = DATA[kind]
    root = files(tmp_path) if callable(files) else write(tmp_path, files)
    if damage is None:
        (root / file).unlink()
    elif callable(damage):
        data = json.loads((root / file).read_text())
        damage(data)
        write(root, {file: data})
    else:
        write(root, {file: damage})
    with pytest.raises(ValueError, match=re.escape(value)) as error:
        read_all(root, task)
    assert "\n" not in str(error.value)


def read_all(root, task, split="val", **options) -> list[dict]:
    dataset, space = load_data(root, task=task, split=split, **options)
    return list(dataset.with_transform(EvaluationTransform(space, task=task)))


def test_problems_are_reported_together(tmp_path):
    root = extracted(tmp_path)
    data = json.loads((root / INSTANCE).read_text())
    data["annotations"] = [{**data["annotations"][0], "id": i, "category_id": 99} for i in range(10)]
    with pytest.raises(ValueError, match="99") as error:
        read_all(write(root, {INSTANCE: data}), "instance")
    assert len(error.value.args) == 10


def test_polygons_far_outside_of_an_image_of_unknown_size_are_refused(tmp_path):
    """Beyond a limit for all images at once, else when the image is read. pycocotools would end the process."""
    root = extracted(tmp_path)
    data = json.loads((root / INSTANCE).read_text())
    for image in data["images"]:
        del image["height"], image["width"]
    data["annotations"][0]["segmentation"] = [[0, 0, 1e7, 0, 1, 1]]
    with pytest.raises(ValueError, match=r"1e\+07"):
        load_data(write(root, {INSTANCE: data}), task="instance", split="val")
    data["annotations"][0]["segmentation"] = [[0, 0, 9e4, 0, 1, 1]]
    load_data(write(root, {INSTANCE: data}), task="instance", split="val")
    with pytest.raises(ValueError, match="90000"):
        read_all(root, "instance")


@pytest.mark.parametrize(("options", "value"), [
    ({"task": "semantic", "dataset": "lvis"}, "'lvis'"),
    ({"task": "instance", "dataset": "folder"}, "'instance'"),
    ({"task": "panoptic", "dataset": "coco"}, "panoptic"),
    ({"task": "panoptic", "dataset": "cityscapes"}, "'panoptic'"),
])  # fmt: skip
def test_wrong_formats_and_tasks_are_refused(tmp_path, options, value):
    with pytest.raises(ValueError, match=value):
        load_data(write(tmp_path, DATA["semantic"][0]), **options)


@pytest.mark.parametrize("path", ["", "images/a.jpg", "classes.json", "a.parquet", "gone", "empty"])
def test_paths_without_a_data_set_are_refused(tmp_path, path):
    write(tmp_path, DATA["semantic"][0] | {"classes.json": ["a"], "a.parquet": b"PAR1"})
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=path or "path"):
        load_data(path and tmp_path / path, task="semantic")


@pytest.mark.parametrize(("orientation", "upright"), [(6, True), (6, False), (3, True)])
def test_images_with_an_exif_orientation_fit_their_labels(tmp_path, orientation, upright):
    """An image of 12 × 16 with a quarter turn. Its labels are upright (16 × 12) from most tools, else as stored. A half
    turn has the same size: its labels are taken to be upright."""
    image = Image.open(io.BytesIO(picture(kind="PNG")))
    turns = {6: -1, 3: 2}[orientation] if upright else 0
    expected = np.rot90(np.asarray(image), turns)
    size = expected.shape[:2]
    write(tmp_path, {"images/a.png": turned_png(image, orientation), "labels/a.png": png(np.zeros(size))})
    (sample,) = read_all(tmp_path, "semantic")
    assert np.array_equal(sample["image"].permute(1, 2, 0).numpy(), expected)
    assert sample["reference"].shape == size


def test_pipes_in_the_data_are_skipped(tmp_path):
    write(tmp_path, DATA["semantic"][0])
    os.mkfifo(tmp_path / "images/b.jpg")
    os.mkfifo(tmp_path / "classes.json")
    assert len(read_all(tmp_path, "semantic")) == 1


def test_circular_links_are_not_followed(tmp_path):
    root = write(tmp_path / "data", {"train/images/a.jpg": picture(), "train/labels/a.png": LABELS})
    (root / "val").symlink_to("train")  # not circular: the same images
    (root / "itself").symlink_to(root)
    (root / "train/images/above").symlink_to(root / "train")
    for split in ("train", "val"):
        assert [s["file_name"] for s in read_all(root, "semantic", split)] == [f"{split}/images/a.jpg"]


# --- archives ---------------------------------------------------------------------------------------------------------


def patched(archive: bytes, offset_in_local: int, offset_in_central: int, value: int) -> bytes:
    """A zip with another value in the header of its first member, in both places of the header."""
    data = bytearray(archive)
    for signature, offset in ((b"PK\3\4", offset_in_local), (b"PK\1\2", offset_in_central)):
        at = data.find(signature) + offset
        data[at : at + 2] = value.to_bytes(2, "little")
    return bytes(data)


ARCHIVES = {
    "damaged": (b"PK no zip", "data.zip"),
    "a member outside of it": (zipped({"../../outside/images/a.jpg": picture()}), "../../outside"),
    "encrypted": (patched(zipped(DATA["semantic"][0]), 6, 8, 1), "images/a.jpg"),
    "another compression": (patched(zipped(DATA["semantic"][0]), 8, 10, 9), "images/a.jpg"),
}


@pytest.mark.parametrize(("content", "value"), ARCHIVES.values(), ids=ARCHIVES)
def test_unreadable_archives_are_refused(tmp_path, content, value):
    with pytest.raises(ValueError, match=re.escape(value)):
        read_all(write(tmp_path, {"data.zip": content}) / "data.zip", "semantic")
