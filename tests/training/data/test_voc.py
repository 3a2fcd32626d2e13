"""Pascal VOC: the official folders and CVAT's export, semantic and instance."""

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from eomt.training import EoMTTrainingArguments
from eomt.training.data import EvaluationTransform, load_data
from eomt.training.data.samples import decode
from eomt.training.options import DataOptions
from eomt.training.setup import load_split, with_more

from .synthetic import encoded, picture, png, write
from .test_folder import labels

CLASSES = np.where(labels() == 9, 20, labels())
OBJECTS = np.select([labels() == 3, labels() == 255, labels() == 9], [2, 255, 1], 0)


def palette_png(values: np.ndarray) -> bytes:
    image = Image.fromarray(values.astype(np.uint8), "P")
    image.putpalette([i * 37 % 256 for i in range(768)])
    return encoded(image, "PNG")


def red_png(values: np.ndarray) -> bytes:
    return png(np.where(values == 255, 0, values)[..., None] * (1, 0, 0))


def voc(root, names: str, lists: dict, encoded=palette_png, labelmap: str = ""):
    """An image for each letter of `names`, all with the same classes and objects."""
    files = {f"ImageSets/Segmentation/{name}.txt": text for name, text in lists.items()}
    if labelmap:
        files["labelmap.txt"] = labelmap
    for name in names:
        files |= {f"JPEGImages/{name}.jpg": picture(), f"SegmentationClass/{name}.png": encoded(CLASSES)}
        files[f"SegmentationObject/{name}.png"] = encoded(OBJECTS)
    return write(root, files)


LABELMAP = "# label:color_rgb:parts:actions\nbackground:0,0,0::\nbird:3,0,0::\ntvmonitor:20,0,0::\n"
FORMS = [{}, {"encoded": red_png, "labelmap": LABELMAP}]  # the official palette, CVAT's colors


@pytest.mark.parametrize("form", FORMS)
def test_semantic(tmp_path, form):
    root = voc(tmp_path / "VOC2012", "abc", {"train": "a\n", "val": "b\n", "trainval": "a\nb\n"}, **form)
    for split, name in (("train", "a"), ("val", "b")):
        dataset, space = load_data(root, task="semantic", split=split)
        assert dataset["image_id"][:] == [name]
        assert space.num_labels == (3 if form else 21)
        names = np.array([*space.names, "unlabeled"])[decode(dataset[0], space).ids]
        border = "background" if form else "unlabeled"
        found = [CLASSES == 3, CLASSES == 20, CLASSES == 255]
        assert np.array_equal(names, np.select(found, ["bird", "tvmonitor", border], "background"))


@pytest.mark.parametrize("first_id", [0, 1])
def test_more_data_of_voc_keeps_its_classes(tmp_path, first_id):
    """VOC's values are read with the ids of the run: they are 1, 2, …, and other ids are refused."""
    names = load_data(voc(tmp_path / "voc", "a", {"train": "a"}), task="instance", split="train")[1].names
    categories = [{"id": number, "name": name} for number, name in enumerate(names, first_id)]
    square = {"id": 1, "image_id": 1, "category_id": 2 + first_id, "segmentation": [[2, 2, 9, 2, 9, 9]], "iscrowd": 0}
    coco = {"images": [{"id": 1, "file_name": "b.jpg", "height": 12, "width": 16}], "annotations": [square]}
    files = {"train2017/b.jpg": picture(), "annotations/instances_train2017.json": coco | {"categories": categories}}
    data = DataOptions(data=str(write(tmp_path / "coco", files)), more_data=str(tmp_path / "voc"))
    args = EoMTTrainingArguments(str(tmp_path / "run"), task="instance", eval_strategy="no", use_cpu=True)
    train, labels = load_split(data, args, "train")
    if first_id == 0:
        with pytest.raises(ValueError, match="not 0"):
            with_more(train, data, args, labels)
        return
    train, labels = with_more(train, data, args, labels)
    found = [{labels.names[s["label_id"]] for s in decode(row, labels).segments} for row in train]
    assert found == [{"bird"}, {"bird", "tvmonitor"}]


@pytest.mark.parametrize("form", FORMS)
def test_instances(tmp_path, form):
    """The class of an object is that of its pixels in SegmentationClass. The background is not a class."""
    dataset, space = load_data(voc(tmp_path, "a", {"val": "a"}, **form), task="instance", split="val")
    assert "background" not in space.names
    reference = dataset.with_transform(EvaluationTransform(space, task="instance"))[0]["reference"]
    found = dict(zip((space.names[label] for label in reference["labels"]), reference["masks"]))
    assert set(found) == {"bird", "tvmonitor"}
    assert np.array_equal(coco_mask.decode(found["bird"]), OBJECTS == 2)
    assert np.array_equal(coco_mask.decode(found["tvmonitor"]), OBJECTS == 1)


def test_data_without_listed_splits_is_divided(tmp_path):
    root = voc(tmp_path, "abcdef", {"default": "\n".join(f"img/{name}" for name in "abcdef")})
    sizes = [len(load_data(root, task="semantic", split=s, automatic_split=True)[0]) for s in ("train", "val")]
    assert sum(sizes) == len(load_data(root, task="semantic")[0]) == 6
    assert min(sizes) > 0
    (root / "SegmentationObject/c.png").unlink()
    with pytest.raises(ValueError, match=r"c: .*SegmentationObject"):
        load_data(root, task="instance")
