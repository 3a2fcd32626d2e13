"""What reading pixels can find: each is one error that names the file."""

import io
import os
import struct
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from eomt.training.data import EvaluationTransform, TrainTransform, load_data

from .readers.test_coco import extracted
from .synthetic import SIZE, panoptic_ids, panoptic_json, panoptic_png, picture, png, write, zipped


def sample_of(root, task="semantic", transform=EvaluationTransform, **options):
    dataset, space = load_data(root, task=task, split="val")
    return dataset.with_transform(transform(space, task=task, **options))[len(dataset) - 1]


def semantic(root, image: bytes, label: bytes):
    return write(root, {"images/a.jpg": image, "labels/a.png": label})


def test_a_truncated_image(tmp_path):
    with pytest.raises(ValueError, match=r"images/a.jpg: unreadable image"):
        sample_of(semantic(tmp_path, picture()[:300], png(np.zeros(SIZE))))


def test_no_image_at_all(tmp_path):
    with pytest.raises(ValueError, match=r"images/a.jpg: unreadable image"):
        sample_of(semantic(tmp_path, b"not an image", png(np.zeros(SIZE))))


def test_an_image_that_was_removed_after_loading(tmp_path):
    root = semantic(tmp_path, picture(), png(np.zeros(SIZE)))
    dataset, space = load_data(root, task="semantic")
    (root / "images/a.jpg").unlink()
    with pytest.raises(ValueError, match=r"images/a.jpg: no such file"):
        dataset.with_transform(EvaluationTransform(space, task="semantic"))[0]


def test_a_mask_of_another_size(tmp_path):
    with pytest.raises(ValueError, match=r"images/a.jpg: its mask is 12×16, the image 20×30"):
        sample_of(semantic(tmp_path, picture(size=(20, 30)), png(np.zeros(SIZE))))


def test_an_instance_of_another_size_than_its_image(tmp_path):
    root = write(extracted(tmp_path), {"val2017/000000000010.jpg": picture(size=(20, 30))})
    with pytest.raises(ValueError, match=r"000000000010.jpg: its annotation is for 12×16 pixels, the image has 20×30"):
        sample_of(root, task="instance")


def test_an_id_of_the_png_that_the_json_lacks(tmp_path):
    ids = panoptic_ids()
    ids[0, 0] = 1234
    root = write(extracted(tmp_path), {"annotations/panoptic_val2017/000000000010.png": panoptic_png(ids)})
    with pytest.raises(ValueError, match=r"0010.jpg: its panoptic png has id 1234, which is not in segments_info"):
        sample_of(root, task="panoptic")


def test_crowds_only_train_as_nothing_here(tmp_path):
    data = panoptic_json()
    for segment in data["annotations"][0]["segments_info"]:
        segment["iscrowd"] = 1
    root = write(extracted(tmp_path), {"annotations/panoptic_val2017.json": data})
    sample = sample_of(root, task="panoptic", transform=TrainTransform, size=32)
    assert sample["mask_labels"].shape == (0, 32, 32)
    assert sample["class_labels"].shape == (0,)


def test_a_damaged_archive_and_a_member_outside_of_it(tmp_path):
    write(tmp_path, {"bad.zip": b"PK no zip", "evil.zip": zipped({"../../outside/images/a.jpg": picture()})})
    with pytest.raises(ValueError, match=r"bad.zip: not a readable zip file"):
        load_data(tmp_path / "bad.zip", task="semantic")
    with pytest.raises(ValueError, match=r"evil.zip: the file name '../../outside/images/a.jpg' is empty or leaves"):
        load_data(tmp_path / "evil.zip", task="semantic")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "semantic", "split": "all"}, "there is no split 'all'"),
        ({"task": "semantic", "dataset": "lvis"}, "there is no data set format 'lvis'"),
        ({"task": "instance", "dataset": "folder"}, "folder data has ground truth for semantic, not for 'instance'"),
    ],
)
def test_wrong_arguments(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        load_data(semantic(tmp_path, picture(), png(np.zeros(SIZE))), **options)


def test_a_scale_range_that_cannot_be():
    with pytest.raises(ValueError, match=r"scale_range"):
        TrainTransform(None, task="semantic", size=16, scale_range=(2.0, 0.5))


@pytest.mark.parametrize("upright", [True, False])
def test_a_photo_with_an_exif_orientation_is_turned_as_its_annotation_is(tmp_path, upright):
    """A camera's file of 12 × 16 to be turned a quarter: annotated upright (16 × 12) by most tools, or as it lies."""
    exif = Image.Exif()
    exif[0x0112] = 6
    rng = np.random.default_rng(0)
    image, buffer = Image.fromarray(rng.integers(0, 255, (*SIZE, 3), dtype=np.uint8)), io.BytesIO()
    image.save(buffer, "PNG", exif=exif)
    size = SIZE[::-1] if upright else SIZE
    write(tmp_path, {"images/a.png": buffer.getvalue(), "labels/a.png": png(np.zeros(size))})
    sample = sample_of(tmp_path)
    expected = np.rot90(np.asarray(image), -1) if upright else np.asarray(image)
    assert np.array_equal(sample["image"].permute(1, 2, 0).numpy(), expected)
    assert sample["reference"].shape == size


def archive(path, files: dict, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as target:
        for name, content in files.items():
            target.writestr(name, content)
    return path


def patched(path, offset_in_local: int, offset_in_central: int, value: int):
    """A zip whose first member's header says something else, in both places where it stands."""
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\3\4", offset_in_local), (b"PK\1\2", offset_in_central)):
        at = data.find(signature) + offset
        data[at : at + 2] = value.to_bytes(2, "little")
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [((6, 8, 1), "'images/a.jpg' is encrypted"), ((8, 10, 9), "'images/a.jpg': That compression method is not supp")],
)
def test_zips_that_cannot_be_unpacked_here(tmp_path, change, message):
    path = archive(tmp_path / "data.zip", {"images/a.jpg": picture(), "labels/a.png": png(np.zeros(SIZE))})
    with pytest.raises(ValueError, match=message):
        sample_of(patched(path, *change))


def test_a_zip_bomb_is_not_unpacked(tmp_path):
    yolo = {"images/a.jpg": picture(), "labels/a.txt": b"0 0 0 1 0 1 1"}
    path = archive(tmp_path / "data.zip", yolo | {"data.yaml": b"names: [cat]\n" + b" " * (1 << 20)})
    with pytest.raises(ValueError, match=r"'data.yaml' has 1048589 bytes; more than 524288 are not read here"):
        load_data(path, task="instance")
    path = archive(tmp_path / "bomb.zip", {"images/a.json": b'{"images"' + b" " * (1 << 27)})
    with pytest.raises(ValueError, match=r"bytes, as a zip bomb would"):
        load_data(path, task="instance", dataset="coco")


def test_a_picture_bomb_among_yolo_images_is_named(tmp_path):
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", b"\0" * 10))
    parts = (struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks)
    bomb = b"\x89PNG\r\n\x1a\n" + b"".join(parts)
    files = {"images/a.png": bomb, "labels/a.txt": "0 0 0 1 0 1 1", "data.yaml": "names: [cat]"}
    with pytest.raises(ValueError, match=r"images/a.png: unreadable image .*decompression bomb"):
        load_data(write(tmp_path, files), task="instance")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: " + "[" * 3000 + "]" * 3000, "not a readable yaml file"),
        ("names: {1.5: cat}", "classes are numbered by integers, each by its own, not as in 1.5"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nnames: [*b, *b]", "the name of class 0 is not text, but a list"),
    ],
)
def test_hostile_yaml(tmp_path, text, message):
    files = {"images/a.jpg": picture(), "labels/a.txt": "0 0 0 1 0 1 1", "data.yaml": text}
    with pytest.raises(ValueError, match=message):
        load_data(write(tmp_path, files), task="instance")


@pytest.mark.parametrize(
    ("isthing", "message"), [(None, "has isthing None"), ("true", "has isthing 'true'"), ("absent", "has no isthing")]
)
def test_categories_say_whether_they_are_things(tmp_path, isthing, message):
    data = panoptic_json()
    data["categories"][0]["isthing"] = isthing
    if isthing == "absent":
        del data["categories"][0]["isthing"]
    root = write(extracted(tmp_path), {"annotations/panoptic_val2017.json": data})
    with pytest.raises(ValueError, match=f"category 'dog' {message}; give 1 for a thing, 0 for stuff"):
        load_data(root, task="panoptic", split="val")


def test_an_id_beyond_64_bits(tmp_path):
    data = panoptic_json()
    data["images"][0]["id"] = 2**63
    root = write(extracted(tmp_path), {"annotations/panoptic_val2017.json": data})
    with pytest.raises(ValueError, match="image 9223372036854775808 needs an integer id"):
        load_data(root, task="panoptic", split="val")


def test_a_pipe_in_the_data_is_not_waited_for(tmp_path):
    semantic(tmp_path, picture(), png(np.zeros(SIZE)))
    os.mkfifo(tmp_path / "images/b.jpg")
    os.mkfifo(tmp_path / "classes.json")
    assert len(load_data(tmp_path, task="semantic")[0]) == 1
