"""Own data without a JSON: images with label PNGs or YOLO text files, in each layout, and errors."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers.testing_utils import CaptureLogger

from eomt.results import label_png
from eomt.training import EoMTDataCollator
from eomt.training.data import EvaluationTransform, TrainTransform, folders, load_data
from eomt.training.data.samples import decode

from .synthetic import SIZE, encoded, picture, png, write, zipped


def labels() -> np.ndarray:
    values = np.zeros(SIZE, int)
    values[:, 8:] = 3
    values[0] = 255
    values[1] = 9
    return values


def stored(values: np.ndarray, name: str) -> bytes:
    return encoded(Image.fromarray(values.astype(np.uint8)), "TIFF" if name.endswith("tif") else "PNG")


@pytest.mark.parametrize("zip_file", [None, "/", "\\"])  # the separator in the names; PowerShell writes "\\"
@pytest.mark.parametrize(("image", "label"), [
    ("{}/images/a.jpg", "{}/labels/a.png"),
    ("images/{}/a.jpg", "labels/{}/a.png"),
    ("x/images/{}/city/a.jpg", "x/annotations/{}/city/a.png"),
    ("{}/img/a.jpg", "{}/mask/a_mask.png"),
    ("{}/img/b_mask.jpg", "{}/mask/b_mask_mask.png"),
    ("{}/images/a.jpg", "{}/ground_truth/a.tif"),
    ("{}/a_jpg.rf.1.jpg", "{}/a_jpg.rf.1_mask.png"),  # Roboflow's
])  # fmt: skip
def test_images_are_paired_with_their_labels(tmp_path, image, label, zip_file):
    files = {"_classes.csv": "Pixel Value, Class\n0, sky\n3, road\n"}
    for i, split in enumerate(("train", "valid", "test")):
        files |= {image.format(split): picture(i), label.format(split): stored(labels(), label)}
    if zip_file:
        files = {"data.zip": zipped({name.replace("/", zip_file): content for name, content in files.items()})}
    root = write(tmp_path, files)
    for split, folder in (("train", "train"), ("val", "valid"), ("test", "test")):
        dataset, space = load_data(
            root / ("data.zip" if zip_file else ""), task="semantic", split=split, ignore_ids=(9,)
        )
        assert dataset["file_name"][:] == [image.format(folder)]
        assert label.format(folder) in dataset["annotation"][0]
        assert dict(zip(space.dataset_ids, space.names)) == {0: "sky", 3: "road"}
        reference = dataset.with_transform(EvaluationTransform(space, task="semantic"))[0]["reference"]
        assert np.array_equal(reference, np.select([labels() == 0, labels() == 3], [0, 1], 255))


def test_class_names_come_from_a_file_or_an_argument(tmp_path):
    root = write(tmp_path, {"images/a.jpg": picture(), "labels/a.png": png(labels())})

    def names(**options):
        return load_data(root, task="semantic", split="val", **options)[1].names

    assert names() == ("class_0", "class_3", "class_9")
    assert names(ignore_ids=(9,)) == ("class_0", "class_3")
    write(root, {"classes.txt": "\ufeffsky\n\n\nroad\n\n\n\n\n\nvoid"})
    assert names() == ("sky", "road", "void")
    write(root, {"classes.json": {"0": "sky", "3": "street"}})
    assert names(ignore_ids=(9,)) == ("sky", "street")
    assert names(class_names={0: "ground", 3: "car", 9: "tree"}) == ("ground", "car", "tree")


def test_classes_may_be_colors(tmp_path):
    """Pure red and black are colors like others. Gray values in three channels are labels."""
    red, gray = labels() == 3, np.repeat((labels() == 3)[..., None] * 7, 3, -1)
    colored = np.where(red[..., None], (255, 0, 0), (0, 10, 200))
    files = {"img/a.jpg": picture(), "mask/a.png": png(colored)}
    root = write(tmp_path / "data", files)
    write(root, {"class_dict.csv": "name,r,g,b\nroad,0,10,200\ncar, 255,0,0\n"})
    dataset, space = load_data(root, task="semantic")
    assert dict(zip(space.names, space.dataset_ids)) == {"car": 255, "road": 10 * 256 + 200 * 65536}
    with pytest.raises(ValueError, match=r"class_dict\.csv"):
        load_data(root, task="semantic", class_names=["street", "car"])
    reference = dataset.with_transform(EvaluationTransform(space, task="semantic"))[0]["reference"]
    assert np.array_equal(reference, np.where(red, 0, 1))
    assert np.array_equal(np.asarray(label_png(reference, space.dataset_ids)), colored)
    dataset, space = load_data(write(tmp_path / "gray", files | {"mask/a.png": png(gray)}), task="semantic")
    assert space.dataset_ids == (0, 7)


def test_unlabeled_pixels_of_sixteen_bits_and_of_colors(tmp_path):
    prediction = np.where(np.arange(SIZE[0] * SIZE[1]).reshape(SIZE) % 3, 1, -1)
    for name, ids, classes in (
        ("sixteen", (3, 300), {"classes.json": {"3": "sky", "300": "road"}}),
        ("more than 255 classes", (255, 300), {"classes.json": {"255": "sky", "300": "road"}}),
        ("colors", (255, 200 * 65536), {"class_dict.csv": "sky,255,0,0\nroad,0,0,200\nVoid,255,255,255\n"}),
    ):
        files = {"images/a.jpg": picture(), "labels/a.png": encoded(label_png(prediction, ids), "PNG")}
        dataset, space = load_data(write(tmp_path / name, files | classes), task="semantic")
        assert dict(zip(space.names, space.dataset_ids)) == dict(zip(("sky", "road"), ids))
        assert np.array_equal(decode(dataset[0], space).ids, prediction)


def test_images_of_the_same_name_have_different_ids(tmp_path):
    files = {f"images/{c}/a.jpg": picture() for c in "xy"} | {f"labels/{c}/a.png": png(labels()) for c in "xy"}
    dataset, _ = load_data(write(tmp_path, files), task="semantic")
    assert dataset["image_id"][:] == ["images/x/a", "images/y/a"]


def test_splits_called_training_and_validation(tmp_path):
    files = {f"images/{name}/a.jpg": picture() for name in ("training", "validation")}
    files |= {name.replace("images", "annotations").replace("jpg", "png"): png(labels()) for name in files}
    root = write(tmp_path, files)
    assert load_data(root, task="semantic", split="train")[0]["file_name"][:] == ["images/training/a.jpg"]
    assert load_data(root, task="semantic", split="val")[0]["file_name"][:] == ["images/validation/a.jpg"]


def test_masks_of_0_and_255_are_binary(tmp_path):
    """Many tools write 255 for the foreground. Beside 1, it is unlabeled."""
    mask = np.zeros(SIZE, int)
    mask[2:5] = 255
    root = write(tmp_path, {"images/a.png": picture(), "masks/a.png": png(mask)})
    dataset, space = load_data(root, task="semantic")
    assert space.dataset_ids == (0, 255)
    reference = dataset.with_transform(EvaluationTransform(space, task="semantic"))[0]["reference"]
    assert np.array_equal(reference, mask // 255)
    assert load_data(root, task="semantic", ignore_ids=(255,))[1].names == ("class_0",)
    assert load_data(root, task="semantic", label_space=space)[1].dataset_ids == (0, 255)
    with pytest.raises(ValueError, match="255"):
        load_data(root, task="semantic", class_names=["crack"])  # would be the name of the background
    named = load_data(root, task="semantic", class_names=["wall", "crack"])[1]
    assert dict(zip(named.names, named.dataset_ids)) == {"wall": 0, "crack": 255}
    write(root, {"classes.txt": "wall\ncrack\n", "images/b.png": picture(), "masks/b.png": png(mask // 255)})
    assert load_data(root, task="semantic")[1].dataset_ids == (0, 1)


def test_a_zip_is_read_by_workers_and_augmentation_differs_between_them(tmp_path):
    files = {f"images/{i}.jpg": picture(7) for i in range(4)} | {f"labels/{i}.png": png(labels()) for i in range(4)}
    write(tmp_path, {"data.zip": zipped(files)})
    dataset, space = load_data(tmp_path / "data.zip", task="semantic")
    dataset[0]  # the archive is open in this process, too
    train = dataset.with_transform(TrainTransform(space, task="semantic", size=64, scale_range=(1.0, 2.0)))
    collator = EoMTDataCollator(keep_file_names=True)
    for data in (train, pickle.loads(pickle.dumps(train))):  # for forked workers and for spawned ones
        torch.manual_seed(0)
        batches = list(DataLoader(data, batch_size=1, collate_fn=collator, num_workers=2))
        assert [batch["file_name"][0] for batch in batches] == [f"images/{i}.jpg" for i in range(4)]
        pixels = [batch["pixel_values"] for batch in batches]  # the four images are equal
        assert not any(torch.equal(a, b) for i, a in enumerate(pixels) for b in pixels[:i])


@pytest.mark.parametrize("yaml", ["names: [cat, dog]\nnc: 2\n", "names:\n  0: cat\n  1: dog\n"])
def test_yolo_segmentation(tmp_path, yaml):
    lines = "1 0.25 0.5 0.75 0.5 0.75 1 0.25 1\n\n0 0 0 0.5 0 0.5 0.25 0 0.25\n"
    files = {"train/images/a.jpg": picture(), "train/images/empty.jpg": picture(), "train/labels/a.txt": lines}
    root = write(tmp_path, {"data.zip": zipped(files | {"data.yaml": yaml})}) / "data.zip"
    dataset, space = load_data(root, task="instance")
    assert space.names == ("cat", "dog")
    sample = dataset.with_transform(TrainTransform(space, task="instance", size=SIZE, augment=False))[0]
    dog, cat = (torch.zeros(SIZE, dtype=torch.bool) for _ in range(2))
    dog[6:, 4:12], cat[:3, :8] = True, True
    assert sample["class_labels"].tolist() == [1, 0]
    assert torch.equal(sample["mask_labels"], torch.stack([dog, cat]))
    assert dataset[1]["segments"] == []  # no text file, so no objects
    assert len(load_data(root, task="instance", keep_empty=False)[0]) == 1


def test_labels_without_an_image_are_skipped_or_refused(tmp_path):
    """An error if no label has an image, else a warning."""
    line = "0 0.1 0.1 0.5 0.1 0.5 0.5\n"
    files = {"data.yaml": "names: [cell]", "images/a.png": picture(), "labels/classes.txt": "cell"}
    root = write(tmp_path / "none", files | {"labels/a_b.txt": line, "labels/c.txt": line})
    with pytest.raises(ValueError, match=r"labels/a_b\.txt"):
        load_data(root, task="instance")
    root = write(tmp_path / "some", files | {"labels/a.txt": line, "labels/c.txt": line})
    with CaptureLogger(folders.logger) as captured:
        assert len(load_data(root, task="instance")[0]) == 1
    assert "labels/c.txt" in captured.out


def test_heic_images_are_named_and_labels_in_jpeg_refused(tmp_path):
    root = write(tmp_path, {"images/a.jpg": picture(), "labels/a.png": png(labels()), "images/b.heic": b""})
    with CaptureLogger(folders.logger) as captured:
        assert len(load_data(root, task="semantic")[0]) == 1
    assert "b.heic" in captured.out
    (root / "labels/a.png").rename(root / "labels/a.jpg")
    with pytest.raises(ValueError, match=r"labels/a\.jpg"):
        load_data(root, task="semantic")
