"""Pascal VOC, semantic and instance: the official folders and CVAT's export "Segmentation mask".

    JPEGImages/a.jpg   SegmentationClass/a.png   ImageSets/Segmentation/{train,val,test}.txt   labelmap.txt
                       SegmentationObject/a.png

Official PNGs have a palette: 0 is the background, 1 … 20 are classes or objects, 255 is unlabeled. With `labelmap.txt`
(lines name:r,g,b:parts:actions) classes and objects are colors. Without lists of splits, a split is all images.
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
UNLABELED = 224 + 256 * 224 + 65536 * 192  # color of 255 in the palette: borders of objects
CLASSES, OBJECTS = "SegmentationClass", "SegmentationObject"


def is_voc(tree: Tree, task: str) -> bool:
    folder = OBJECTS if task == "instance" else CLASSES
    pngs = tree.stems(folder, ".png")
    return bool(pngs) and any(_is_list(name) or _is_labelmap(name) for name in tree.names)


def voc_splits(path: Path, task: str) -> list[str]:
    """The splits with a list of images."""
    listed = {PurePosixPath(name).stem for name in Tree(path).names if _is_list(name)}
    return [split for split, words in SPLIT_NAMES.items() if listed & set(words)]


def read_voc(path: Path, task: str, split: str, options: ReadOptions) -> tuple[Rows, LabelSpace]:
    """Rows and label space of one split. Segments are known only after reading the PNGs (`object_map`)."""
    tree = Tree(path)
    space, is_colored = _own_classes(tree, task)
    layout = "voc_instance" if task == "instance" else "semantic"
    rows = Rows(str(path), f"{layout}_colors" if is_colored else layout)
    folders = {"JPEGImages": tree.stems("JPEGImages", IMAGE_SUFFIXES), CLASSES: tree.stems(CLASSES, ".png")}
    if task == "instance":
        folders[OBJECTS] = tree.stems(OBJECTS, ".png")
    for stem in _listed(tree, split) if voc_splits(path, task) else sorted(folders[CLASSES]):
        with rows.problems.at(f"{path}: {stem}"):
            for folder, files in folders.items():
                if stem not in files:
                    raise ValueError(f"there is no file of this name in {folder}")
            locations = [tree.locate(files[stem]) for files in folders.values()]  # image, classes, objects
            rows.add(stem, folders["JPEGImages"][stem], *locations)
    return rows, options.match(space, path)


def object_map(objects: np.ndarray, labels: np.ndarray, is_colored: bool) -> tuple[np.ndarray, list[dict]]:
    """The ids of objects and their segments. An object has the most frequent label of its pixels.

    Args:
        objects: object PNG (H, W).
        labels: label of each pixel (H, W), VOID if unlabeled.
        is_colored: whether objects are colors.

    Returns:
        ids int32 (H, W), 0 for no object, and segments.
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
    """Names in the list of a split."""
    lists = {PurePosixPath(name).stem: name for name in tree.names if _is_list(name)}
    file = next((lists[word] for word in SPLIT_NAMES[split] if word in lists), None)
    lines = tree.text(file).splitlines() if file else []
    return [PurePosixPath(line.strip()).name for line in lines if line.strip()]


def _own_classes(tree: Tree, task: str) -> tuple[LabelSpace, bool]:
    """The label space, without the background for instances, and whether classes are colors."""
    file = next((name for name in tree.names if _is_labelmap(name)), None)
    if file is None:
        names = dict(enumerate(NAMES))
        ignored = ()
    else:
        names = class_colors(map(_name_and_color, tree.text(file).splitlines()), f"{tree}/{file}")
        ignored = () if UNLABELED in names else (UNLABELED,)
    if task == "instance":
        ignored = (*ignored, *(i for i, name in names.items() if name == "background"))
    ids = tuple(sorted(i for i in names if i not in ignored))
    return LabelSpace(str(tree), tuple(names[i] for i in ids), (), ids, ignored), file is not None


def _name_and_color(line: str) -> tuple[str, list[str]] | None:
    """Name and color in a line of labelmap.txt, None for a comment."""
    if not line.strip() or line.startswith("#"):
        return None
    name, color, *_ = (*line.split(":"), "")
    return name, color.split(",")


def _is_list(name: str) -> bool:
    return f"/{name}".rpartition("/")[0].endswith("/ImageSets/Segmentation") and name.endswith(".txt")


def _is_labelmap(name: str) -> bool:
    return PurePosixPath(name).name == "labelmap.txt"
