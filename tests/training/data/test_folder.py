"""Own data without a json: images beside label pngs or YOLO txt, in each layout; mistakes are reported."""

import io

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

from .synthetic import SIZE, picture, png, write, zipped


def labels() -> np.ndarray:
    values = np.zeros(SIZE, int)
    values[:, 8:] = 3
    values[0] = 255
    values[1] = 9
    return values


def semantic_files(layout: str) -> dict:
    files = {}
    for split in ("train", "val"):
        for name in ("b", "a"):
            image, label = layout.format(split=split, role="images"), layout.format(split=split, role="labels")
            files[f"{image}/{name}.jpg"] = picture(hash_of(split + name))
            files[f"{label}/{name}.png"] = png(labels())
    return files


def hash_of(text: str) -> int:
    return sum(map(ord, text))


@pytest.mark.parametrize("layout", ["{split}/{role}", "{role}/{split}", "x/{role}/{split}/city"])
def test_semantic_in_either_order_of_folders(tmp_path, layout):
    root = write(tmp_path, semantic_files(layout))
    dataset, space = load_data(root, task="semantic", split="val", ignore_ids=(9,))
    assert dataset["image_id"][:] == ["a", "b"]
    assert all("val" in path for path in dataset["image"][:])
    assert space.names == ("class_0", "class_3")
    assert space.dataset_ids == (0, 3)
    reference = dataset.with_transform(EvaluationTransform(space, task="semantic"))[0]["reference"]
    expected = np.where(labels() == 3, 1, labels())
    expected[1] = 255
    assert np.array_equal(reference, expected)


def test_class_names_from_a_file_or_an_argument(tmp_path):
    root = write(tmp_path, semantic_files("{split}/{role}") | {"classes.json": {"0": "sky", "3": "road"}})
    _, space = load_data(root, task="semantic", ignore_ids=(9,))
    assert space.names == ("sky", "road")
    _, space = load_data(root, task="semantic", class_names={0: "ground", 3: "car", 9: "tree"})
    assert space.names == ("ground", "car", "tree")
    (root / "classes.json").unlink()
    write(root, {"classes.txt": "sky\n\n\nroad\n\n\n\n\n\nvoid"})
    _, space = load_data(root, task="semantic")
    assert space.names == ("sky", "road", "void")
    assert space.dataset_ids == (0, 3, 9)


def test_classes_as_colors(tmp_path):
    """Pure red and black are colors like others; a picture of gray values in three channels is a label png."""
    red, gray = labels() == 3, np.repeat((labels() == 3)[..., None] * 7, 3, -1)
    colored = np.where(red[..., None], (255, 0, 0), (0, 10, 200))
    files = {"img/a.jpg": picture(), "mask/a.png": png(colored)}
    root = write(tmp_path / "data", files)
    write(root, {"class_dict.csv": "name,r,g,b\nroad,0,10,200\ncar, 255,0,0\n"})
    dataset, space = load_data(root, task="semantic")
    assert dict(zip(space.names, space.dataset_ids)) == {"car": 255, "road": 10 * 256 + 200 * 65536}
    reference = dataset.with_transform(EvaluationTransform(space, task="semantic"))[0]["reference"]
    assert np.array_equal(reference, np.where(red, 0, 1))
    again = np.asarray(label_png(reference, space.dataset_ids))  # as `predict` writes it
    assert np.array_equal(again, colored)
    dataset, space = load_data(write(tmp_path / "gray", files | {"mask/a.png": png(gray)}), task="semantic")
    assert space.dataset_ids == (0, 7)


def test_unlabeled_pixels_of_sixteen_bits_and_of_colors(tmp_path):
    prediction = np.where(np.arange(SIZE[0] * SIZE[1]).reshape(SIZE) % 3, 1, -1)
    for name, ids, classes in (
        ("sixteen", (3, 300), {"classes.json": {"3": "sky", "300": "road"}}),
        ("colors", (255, 200 * 65536), {"class_dict.csv": "sky,255,0,0\nroad,0,0,200\nVoid,255,255,255\n"}),
    ):
        buffer = io.BytesIO()
        label_png(prediction, ids).save(buffer, "PNG")
        files = {"images/a.jpg": picture(), "labels/a.png": buffer.getvalue()}
        dataset, space = load_data(write(tmp_path / name, files | classes), task="semantic")
        assert dict(zip(space.names, space.dataset_ids)) == dict(zip(("sky", "road"), ids))
        assert np.array_equal(decode(dataset[0], space).ids, prediction)


def test_a_folder_without_splits_and_one_in_a_zip(tmp_path):
    files = {"images/a.jpg": picture(), "masks/a.png": png(labels())}
    write(tmp_path / "folder", files)
    write(tmp_path, {"data.zip": zipped(files)})
    for path in (tmp_path / "folder", tmp_path / "data.zip"):
        dataset, space = load_data(path, task="semantic", split="val")
        assert space.num_labels == 3
        assert dataset.with_transform(EvaluationTransform(space, task="semantic"))[0]["image"].shape == (3, *SIZE)


def test_images_of_one_name_in_two_folders_have_ids_of_their_own(tmp_path):
    files = {f"images/{c}/a.jpg": picture() for c in "xy"} | {f"labels/{c}/a.png": png(labels()) for c in "xy"}
    dataset, _ = load_data(write(tmp_path, files), task="semantic")
    assert dataset["image_id"][:] == ["images/x/a", "images/y/a"]


YAML = "names: [cat, dog]\nnc: 2\n"


def yolo(root, text: str, yaml: str = YAML):
    files = {"train/images/a.jpg": picture(), "train/images/empty.jpg": picture(), "train/labels/a.txt": text}
    return write(root, files | {"data.yaml": yaml})


@pytest.mark.parametrize("yaml", [YAML, "names:\n  0: cat\n  1: dog\n"])
def test_yolo_segmentation(tmp_path, yaml):
    root = yolo(tmp_path, "1 0.25 0.5 0.75 0.5 0.75 1 0.25 1\n\n0 0 0 0.5 0 0.5 0.25 0 0.25\n", yaml)
    dataset, space = load_data(root, task="instance")
    assert space.names == ("cat", "dog")
    sample = dataset.with_transform(TrainTransform(space, task="instance", size=SIZE, augment=False))[0]
    dog, cat = (torch.zeros(SIZE, dtype=torch.bool) for _ in range(2))
    dog[6:, 4:12], cat[:3, :8] = True, True
    assert sample["class_labels"].tolist() == [1, 0]
    assert torch.equal(sample["mask_labels"], torch.stack([dog, cat]))
    assert dataset[1]["segments"] == []  # an image without a txt has no objects
    assert len(load_data(root, task="instance", keep_empty=False)[0]) == 1


def test_yolo_in_a_zip_is_found_by_its_files(tmp_path):
    files = {"train/images/a.jpg": picture(), "train/labels/a.txt": "1 0 0 1 0 1 1", "data.yaml": YAML}
    write(tmp_path, {"data.zip": zipped(files)})
    dataset, space = load_data(tmp_path / "data.zip", task="instance")
    assert space.names == ("cat", "dog")
    assert [s["label_id"] for s in dataset[0]["segments"]] == [1]


def test_a_zip_is_read_by_spawned_workers_and_augmentation_differs_between_them(tmp_path):
    files = {f"images/{i}.jpg": picture(7) for i in range(4)} | {f"labels/{i}.png": png(labels()) for i in range(4)}
    write(tmp_path, {"data.zip": zipped(files)})
    dataset, space = load_data(tmp_path / "data.zip", task="semantic")
    dataset[0]  # the archive may be open in this process already
    train = dataset.with_transform(TrainTransform(space, task="semantic", size=64, scale_range=(1.0, 2.0)))
    collator = EoMTDataCollator(keep_file_names=True)
    for workers, method in ((1, "spawn"), (2, "fork")):
        torch.manual_seed(0)
        options = {"num_workers": workers, "multiprocessing_context": method}
        batches = list(DataLoader(train, batch_size=1, collate_fn=collator, **options))
        assert [batch["file_name"][0] for batch in batches] == [f"images/{i}.jpg" for i in range(4)]
        pixels = [batch["pixel_values"] for batch in batches]  # the four pictures are the same
        assert not any(torch.equal(a, b) for i, a in enumerate(pixels) for b in pixels[:i])


def test_labels_named_after_their_images_with_an_ending(tmp_path):
    files = {}
    for name in ("a", "b_mask"):
        files[f"train/img/{name}.jpg"] = picture(hash_of(name))
        files[f"train/mask/{name}_mask.png"] = png(labels())
    dataset, _ = load_data(write(tmp_path, files), task="semantic", ignore_ids=(9,))
    pairs = zip(dataset["image"][:], dataset["annotation"][:])
    assert [(image.rpartition("/")[2], label.rpartition("/")[2]) for image, label in pairs] == [
        ("a.jpg", "a_mask.png"),
        ("b_mask.jpg", "b_mask_mask.png"),
    ]
    write(tmp_path, {"train/mask/a.png": png(labels())})
    with pytest.raises(ValueError, match=r"train/mask/a"):
        load_data(tmp_path, task="semantic", ignore_ids=(9,))


def test_masks_of_0_and_255_are_binary(tmp_path):
    """Many tools write 255 for the foreground."""
    mask = np.zeros(SIZE, int)
    mask[2:5] = 255
    root = write(tmp_path, {"images/a.png": picture(), "masks/a.png": png(mask)})
    dataset, space = load_data(root, task="semantic")
    assert space.dataset_ids == (0, 255)
    reference = dataset.with_transform(EvaluationTransform(space, task="semantic"))[0]["reference"]
    assert np.array_equal(reference, mask // 255)
    assert load_data(root, task="semantic", ignore_ids=(255,))[1].names == ("class_0",)
    assert load_data(root, task="semantic", label_space=space)[1].dataset_ids == (0, 255), "a model of these classes"


@pytest.mark.parametrize("folder", ["gt", "ground_truth", "targets", "SegmentationClass"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_names_and_formats_of_label_images(tmp_path, folder, kind):
    buffer = io.BytesIO()
    Image.fromarray(labels().astype(np.uint8)).save(buffer, kind)
    label = f"{folder}/a.{'png' if kind == 'PNG' else 'tif'}"
    root = write(tmp_path, {"images/a.jpg": picture(), label: buffer.getvalue()})
    dataset, space = load_data(root, task="semantic", ignore_ids=(9,))
    assert space.dataset_ids == (0, 3)
    assert np.array_equal(decode(dataset[0], space).ids == 1, labels() == 3)


def test_label_images_in_jpeg_are_refused_with_the_reason(tmp_path):
    root = write(tmp_path, {"images/a.jpg": picture(), "labels/a.jpg": picture()})
    with pytest.raises(ValueError, match=r"labels/a\.jpg"):
        load_data(root, task="semantic")


def test_roboflow_label_images_lie_beside_their_images(tmp_path):
    files = {"_classes.csv": "Pixel Value, Class\n0, sky\n3, road\n"}
    for split in ("train", "valid"):
        files |= {f"{split}/a_jpg.rf.1.jpg": picture(), f"{split}/a_jpg.rf.1_mask.png": png(labels())}
    root = write(tmp_path, files)
    for split, folder in (("train", "train"), ("val", "valid")):
        dataset, space = load_data(root, task="semantic", split=split, ignore_ids=(9,))
        assert space.names == ("sky", "road")
        assert dataset["file_name"][:] == [f"{folder}/a_jpg.rf.1.jpg"]


def test_heic_images_are_named(tmp_path):
    root = write(tmp_path, {"images/a.jpg": picture(), "labels/a.png": png(labels()), "images/b.heic": b""})
    with CaptureLogger(folders.logger) as captured:
        assert len(load_data(root, task="semantic")[0]) == 1
    assert "b.heic" in captured.out


def test_labels_without_an_image(tmp_path):
    """An error if no label has an image; otherwise those without one are skipped with a warning."""
    line = "0 0.1 0.1 0.5 0.1 0.5 0.5\n"
    files = {"data.yaml": "names: [cell]", "images/a.png": picture(), "labels/classes.txt": "cell"}
    root = write(tmp_path / "none", files | {"labels/a_b.txt": line, "labels/c.txt": line})
    with pytest.raises(ValueError, match=r"labels/a_b\.txt"):
        load_data(root, task="instance")
    root = write(tmp_path / "some", files | {"labels/a.txt": line, "labels/c.txt": line})
    with CaptureLogger(folders.logger) as captured:
        assert len(load_data(root, task="instance")[0]) == 1
    assert "labels/c.txt" in captured.out


def test_a_split_of_its_own_for_testing(tmp_path):
    files = semantic_files("{split}/{role}")
    files |= {name.replace("val/", "test/"): content for name, content in files.items() if name.startswith("val/")}
    root = write(tmp_path, files)
    for split in ("train", "val", "test"):
        dataset, _ = load_data(root, task="semantic", split=split, ignore_ids=(9,))
        assert all(f"/{split}/" in path for path in dataset["image"][:])
