"""Pascal VOC, semantic and instance: the official folders, and "Segmentation mask" as CVAT exports it.

    JPEGImages/a.jpg   SegmentationClass/a.png   ImageSets/Segmentation/{train,val,test}.txt   labelmap.txt
                       SegmentationObject/a.png

Official pngs have a palette: 0 is the background, 1 … 20 the classes or objects, 255 unlabeled. With a `labelmap.txt`
(name:r,g,b:parts:actions a line) classes are its colors, and each object has a color of its own. A set that lists no
split is all of it.
"""

from pathlib import Path, PurePosixPath

import numpy as np

from ...configuration.labels import VOID, LabelSpace
from ...image_processing.images import distinct_values
from .files import IMAGE_SUFFIXES, SPLIT_NAMES, Tree
from .folders import class_colors
from .rows import ReadOptions, Rows

NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
UNLABELED = 224 + 256 * 224 + 65536 * 192  # the color of 255 in the palette: borders of objects
CLASSES, OBJECTS = "SegmentationClass", "SegmentationObject"


def is_voc(tree: Tree, task: str) -> bool:
    folder = OBJECTS if task == "instance" else CLASSES
    pngs = tree.stems(folder, ".png")
    return bool(pngs) and any(_is_list(name) or _is_labelmap(name) for name in tree.names)


def voc_splits(path: Path, task: str) -> list[str]:
    """The splits that the data lists."""
    listed = {PurePosixPath(name).stem for name in Tree(path).names if _is_list(name)}
    return [split for split, words in SPLIT_NAMES.items() if listed & set(words)]


def read_voc(path: Path, task: str, split: str, options: ReadOptions) -> tuple[Rows, LabelSpace]:
    """Rows of one split and the label space; what an instance is, its png says when it is read."""
    tree = Tree(path)
    space, is_colored = _own_classes(tree, task)
    layout = "voc_instance" if task == "instance" else "semantic"
    rows = Rows(str(path), f"{layout}_colors" if is_colored else layout)
    images, labels = tree.stems("JPEGImages", IMAGE_SUFFIXES), tree.stems(CLASSES, ".png")
    objects = tree.stems(OBJECTS, ".png")
    for stem in _listed(tree, split) or ([] if voc_splits(path, task) else sorted(labels)):
        with rows.problems.at(f"{path}: {stem}"):
            for folder, stems in (("JPEGImages", images), (CLASSES, labels), (OBJECTS, objects)):
                if stem not in stems and not (folder == OBJECTS and task == "semantic"):
                    raise ValueError(f"there is no file of this name in {folder}")
            things = tree.locate(objects[stem]) if task == "instance" else ""
            rows.add(stem, images[stem], tree.locate(images[stem]), tree.locate(labels[stem]), things)
    return rows, options.match(space, path)


def object_map(objects: np.ndarray, labels: np.ndarray, is_colored: bool) -> tuple[np.ndarray, list[dict]]:
    """Objects' png (H, W) and the pixels' labels (H, W), VOID for none → ids int32 (H, W), 0 for none, and segments.

    An object's label is that of most of its pixels.
    """
    ids = np.where(objects == (UNLABELED if is_colored else 255), 0, objects)
    segments = []
    for number in distinct_values(ids):
        found = labels[(ids == number) & (labels != VOID)]
        if number and found.size:
            label = int(np.bincount(found).argmax())
            segments.append({"id": number, "label_id": label, "iscrowd": 0, "area": -1.0})
    return ids, segments


def _listed(tree: Tree, split: str) -> list[str]:
    """Names of a split's images, as its list has them."""
    lists = {PurePosixPath(name).stem: name for name in tree.names if _is_list(name)}
    file = next((lists[word] for word in SPLIT_NAMES[split] if word in lists), None)
    lines = tree.text(file).splitlines() if file else []
    return [PurePosixPath(line.strip()).name for line in lines if line.strip()]


def _own_classes(tree: Tree, task: str) -> tuple[LabelSpace, bool]:
    """The label space, without the background for instances, and whether classes are colors."""
    file = next((name for name in tree.names if _is_labelmap(name)), None)
    names = dict(enumerate(NAMES))
    if file is not None:
        names = class_colors(map(_name_and_color, tree.text(file).splitlines()), f"{tree}/{file}")
    ignored = () if file is None or UNLABELED in names else (UNLABELED,)
    if task == "instance":
        ignored = (*ignored, *(i for i, name in names.items() if name == "background"))
    ids = tuple(sorted(i for i in names if i not in ignored))
    return LabelSpace(str(tree), tuple(names[i] for i in ids), (), ids, ignored), file is not None


def _name_and_color(line: str) -> tuple[str, list[str]] | None:
    """A line of labelmap.txt, None for a comment."""
    if not line.strip() or line.startswith("#"):
        return None
    name, color, *_ = (*line.split(":"), "")
    return name, color.split(",")


def _is_list(name: str) -> bool:
    return f"/{name}".rpartition("/")[0].endswith("/ImageSets/Segmentation") and name.endswith(".txt")


def _is_labelmap(name: str) -> bool:
    return PurePosixPath(name).name == "labelmap.txt"
