"""Pascal VOC, semantic: the official folders, and "Segmentation mask" as CVAT exports it.

    JPEGImages/a.jpg   SegmentationClass/a.png   ImageSets/Segmentation/{train,val,test}.txt   labelmap.txt

Official pngs have a palette: 0 is the background, 1 … 20 the classes, 255 unlabeled. With a `labelmap.txt`
(name:r,g,b:parts:actions a line) classes are its colors. A set that lists no split is all of it.
"""

from pathlib import Path, PurePosixPath

from ....configuration.labels import LabelSpace
from ..files import IMAGE_SUFFIXES, SPLIT_NAMES, Tree
from ..rows import Rows
from .options import ReadOptions

NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
UNLABELED = 224 + 256 * 224 + 65536 * 192  # the color of 255 in the palette: borders of objects


def is_voc(tree: Tree) -> bool:
    folders = {PurePosixPath(name).parent.name for name in tree.names if name.endswith(".png")}
    return "SegmentationClass" in folders and any(_is_list(name) or _is_labelmap(name) for name in tree.names)


def voc_splits(tree: Tree) -> list[str]:
    """The splits that the data lists."""
    listed = {PurePosixPath(name).stem for name in tree.names if _is_list(name)}
    return [split for split, words in SPLIT_NAMES.items() if listed & set(words)]


def read_voc(path: Path, task: str, split: str, options: ReadOptions) -> tuple[Rows, LabelSpace]:
    """Rows of one split and the label space."""
    tree = Tree(path)
    space, layout = _voc_space(tree)
    rows = Rows(str(path), layout)
    labels = {PurePosixPath(n).stem: n for n in tree.names if PurePosixPath(n).parent.name == "SegmentationClass"}
    images = {
        PurePosixPath(n).stem: n
        for n in tree.names
        if PurePosixPath(n).parent.name == "JPEGImages" and n.lower().endswith(IMAGE_SUFFIXES)
    }
    for stem in _stems(tree, split, labels):
        if stem not in images:
            rows.problem(stem, f"there is no image of this name in JPEGImages of {path}")
        elif stem not in labels:
            rows.problem(images[stem], "there is no png of its name in SegmentationClass")
        else:
            rows.add(stem, images[stem], tree.locate(images[stem]), tree.locate(labels[stem]))
    return rows, options.match(space, path)


def _stems(tree: Tree, split: str, labels: dict[str, str]) -> list[str]:
    """Names of a split's images, as its list has them; all images with labels where no split is listed."""
    lists = {PurePosixPath(name).stem: name for name in tree.names if _is_list(name)}
    for word in SPLIT_NAMES[split]:
        if word in lists:
            return [PurePosixPath(line.strip()).name for line in tree.text(lists[word]).splitlines() if line.strip()]
    return [] if voc_splits(tree) else sorted(labels)


def _voc_space(tree: Tree) -> tuple[LabelSpace, str]:
    file = next((name for name in tree.names if _is_labelmap(name)), None)
    if file is None:
        return LabelSpace("voc", NAMES, (), tuple(range(len(NAMES)))), "semantic"
    source, names = f"{tree}/{file}", {}
    for number, line in enumerate(tree.text(file).splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, color, *_ = (*line.split(":"), "")
        parts = color.split(",")
        if len(parts) != 3 or not all(part.strip().isdecimal() and int(part) < 256 for part in parts):
            raise ValueError(f"{source}, line {number}: {line!r:.60} is not name:r,g,b:parts:actions")
        red, green, blue = map(int, parts)
        packed = red + 256 * green + 65536 * blue
        if packed in names:
            raise ValueError(f"{source}, line {number}: {name!r} has the color of {names[packed]!r}")
        names[packed] = name
    if not names:
        raise ValueError(f"{source}: it has no classes; write a line name:r,g,b:: for each")
    ignored = () if UNLABELED in names else (UNLABELED,)
    ids = tuple(sorted(names))
    return LabelSpace(source, tuple(names[i] for i in ids), (), ids, ignored), "semantic_colors"


def _is_list(name: str) -> bool:
    return f"/{name}".rpartition("/")[0].endswith("/ImageSets/Segmentation") and name.endswith(".txt")


def _is_labelmap(name: str) -> bool:
    return PurePosixPath(name).name == "labelmap.txt"
