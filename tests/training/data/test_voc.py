"""Pascal VOC: the official folders and CVAT's export, semantic and instance."""

import io

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from eomt.training.data import EvaluationTransform, load_data
from eomt.training.data.samples import decode

from .synthetic import picture, png, write
from .test_folder import labels


def palette_png(values: np.ndarray) -> bytes:
    image = Image.fromarray(values.astype(np.uint8), "P")
    image.putpalette([i * 37 % 256 for i in range(768)])
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_voc(tmp_path):
    """The official folders: a palette's indices are the classes, 255 is unlabeled."""
    files = {f"VOC2012/JPEGImages/{name}.jpg": picture() for name in "abc"}
    values = np.where(labels() == 9, 20, labels())
    files |= {f"VOC2012/SegmentationClass/{name}.png": palette_png(values) for name in "ab"}
    lists = {"train": "a\n", "val": "b\n", "trainval": "a\nb\n"}
    files |= {f"VOC2012/ImageSets/Segmentation/{name}.txt": text for name, text in lists.items()}
    root = write(tmp_path, files)
    for split, name in (("train", "a"), ("val", "b")):
        dataset, space = load_data(root, task="semantic", split=split)
        assert dataset["image_id"][:] == [name]
        assert (space.num_labels, space.names[3], space.names[20]) == (21, "bird", "tvmonitor")
        assert np.array_equal(decode(dataset[0], space).ids, np.where(values == 255, -1, values))


def test_voc_as_cvat_exports_it(tmp_path):
    """Classes are colors of `labelmap.txt`; no split is listed, so a part can be held out."""
    colored = np.where((labels() == 3)[..., None], (250, 50, 83), 0)
    files = {"labelmap.txt": "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncar:250,50,83::\n"}
    files["ImageSets/Segmentation/default.txt"] = "\n".join(f"img/{i}" for i in range(6))
    for i in range(6):
        files |= {f"JPEGImages/{i}.jpg": picture(i), f"SegmentationClass/{i}.png": png(colored)}
    root = write(tmp_path, files)
    dataset, space = load_data(root, task="semantic")
    assert len(dataset) == 6
    assert space.names == ("background", "car")
    assert np.array_equal(decode(dataset[0], space).ids, labels() == 3)
    sizes = [len(load_data(root, task="semantic", split=s, automatic_split=True)[0]) for s in ("train", "val")]
    assert sum(sizes) == 6
    assert min(sizes) > 0


OBJECTS = np.select([labels() == 3, labels() == 255, labels() == 9], [2, 255, 1], 0)
COLORED = (OBJECTS == 2)[..., None] * (0, 128, 0) + (OBJECTS == 1)[..., None] * (128, 0, 0)


@pytest.mark.parametrize("colored", [False, True])
def test_voc_instances(tmp_path, colored):
    """An object's class is that of its pixels in SegmentationClass; the background is no class."""
    values = np.where(labels() == 9, 20, labels())
    classes, objects = palette_png(values), palette_png(OBJECTS)
    files = {"JPEGImages/a.jpg": picture(), "ImageSets/Segmentation/val.txt": "a"}
    if colored:
        classes, objects = png(np.where(values == 255, 0, values)[..., None] * (1, 0, 0)), png(COLORED)
        files["labelmap.txt"] = "background:0,0,0::\nbird:3,0,0::\ntvmonitor:20,0,0::\n"
    files |= {"SegmentationClass/a.png": classes, "SegmentationObject/a.png": objects}
    dataset, space = load_data(write(tmp_path, files), task="instance", split="val")
    assert "background" not in space.names
    reference = dataset.with_transform(EvaluationTransform(space, task="instance"))[0]["reference"]
    found = dict(zip((space.names[label] for label in reference["labels"]), reference["masks"]))
    assert set(found) == {"bird", "tvmonitor"}
    assert np.array_equal(coco_mask.decode(found["bird"]), OBJECTS == 2)
    assert np.array_equal(coco_mask.decode(found["tvmonitor"]), OBJECTS == 1)
    (tmp_path / "SegmentationObject/a.png").unlink()
    write(tmp_path, {"SegmentationObject/b.png": objects})
    with pytest.raises(ValueError, match="SegmentationObject"):
        load_data(tmp_path, task="instance", split="val")
