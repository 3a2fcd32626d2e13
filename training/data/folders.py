"""Semantic segmentation from a folder of images and a folder of label PNGs. YOLO's text files are paired the same way.

    {train,val}/images/a.jpg   {train,val}/labels/a.png            or   images/{train,val}/…   labels/{train,val}/…
    images/a.jpg               labels/a.png                        no splits: each is all images (`load.hold_out`)

Other names: `image`, `imgs` or `img` for image folders; `label`, `annotations`, `masks`, `gt`, `ground_truth` or
`targets` for label folders. Roboflow's label PNGs are beside the images: `train/a_mask.png`, `train/a.jpg`. The name of
a label PNG may have the ending `_mask` (or `_masks`, `_label`, `_labels`, `_gt`): `masks/a_mask.png`.

Classes come from `classes.txt` (line i names pixel value i), `classes.json` ({"0": "sky", …}), `class_dict.csv`
(name,r,g,b; classes are colors), or the values in the label PNGs. Masks of 0 and 255 only are binary: 255 is the
foreground, the second of two named classes. Otherwise 255, 65535 and the color named void are unlabeled.
"""

import csv
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from tqdm.auto import tqdm
from transformers.utils import logging

from ...configuration.labels import IGNORE_INDEX, VOID_VALUES, LabelSpace
from ...image_processing.images import distinct_values
from .files import HEIC_SUFFIXES, IMAGE_SUFFIXES, SPLIT_NAMES, Tree, mentioned_splits, mentions, naming
from .images import read_classes
from .rows import Problems, ReadOptions, Rows, is_id

logger = logging.get_logger(__name__)

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "jpegimages")
LABEL_FOLDERS = (
    "labels", "label", "annotations", "annotation", "masks", "mask", "gt", "ground_truth", "groundtruth", "targets",
    "target", "segmentationclass",
)  # fmt: skip
LABEL_SUFFIXES = (".png", ".tif", ".tiff")  # lossless formats
LABEL_ENDING = re.compile(r"[_-](masks?|labels?|gt)$", re.IGNORECASE)


def is_folder(tree: Tree, task: str) -> bool:
    return task == "semantic"


def folder_splits(path: Path, task: str) -> list[str]:
    """The splits in the names of image folders."""
    images = (PurePosixPath(name) for name in Tree(path).names if name.lower().endswith(IMAGE_SUFFIXES))
    return mentioned_splits({str(image.parent) for image in images})


def read_folder(path: Path, task: str, split: str, options: ReadOptions) -> tuple[Rows, LabelSpace]:
    """Rows and label space of one split. Classes without names take those of the model (`options.known_names`)."""
    tree = Tree(path)
    colors = _class_dict(tree)
    rows = Rows(str(path), "semantic_colors" if colors else "semantic")
    found = pairs(tree, split, LABEL_SUFFIXES, rows.problems)
    annotations = [name for name in tree.names if name.endswith(".json") and name != "classes.json"]
    if annotations and not found:
        raise ValueError(
            f"{path}: no images with label PNGs for semantic segmentation; if {annotations[0]} has COCO annotations, "
            "the task is panoptic or instance"
        )
    image_id = image_ids([image for image, _ in found])
    for image, label in found:
        with rows.problems.at(image):
            if label is None:
                raise ValueError("there is no label PNG of the same name")
            rows.add(image_id[image], image, tree.locate(image), tree.locate(label))
    if colors and options.class_names:
        raise ValueError(f"{path}: class_dict.csv names the classes; leave out the class names, or remove the file")
    if colors:
        void = [color for color, name in colors.items() if name.lower() == "void"]
        ignored = (*options.ignore_ids, *void)
        ids = sorted(color for color in colors if color not in ignored)
        space = LabelSpace(str(path), tuple(colors[color] for color in ids), (), tuple(ids), ignored)
        return rows, options.match(space, path)
    names = options.class_names or _classes_file(tree) or options.known_names
    train = pairs(tree, "train", LABEL_SUFFIXES) or found  # every split has the classes of the training split
    labels = [(tree.locate(label), label) for _, label in train if label]
    if not labels:
        rows.require_sound()  # the reason for missing labels
    return rows, options.match(numbered_space(path, names, labels, options), path)


# --- pairing ----------------------------------------------------------------------------------------------------------


def pairs(
    tree: Tree, split: str, suffixes: tuple[str, ...], problems: Problems | None = None
) -> list[tuple[str, str | None]]:
    """(image, label or None) of a split, paired by path and stem; all images if no folder names a split.

    Conflicting names are added to `problems`.
    """
    images, labels = _by_key(tree, suffixes)
    chosen = _of_split(images, split)
    found = [(chosen[key][0], labels[key][0] if key in labels else None) for key in sorted(chosen)]
    if problems is not None:
        unused = [names[0] for key, names in labels.items() if key not in images and key[-1] != "classes"]
        _report_doubles(chosen, labels, problems)
        _report_unpaired(tree, found, unused, suffixes, problems)
    return found


def _of_split(images: dict[tuple, list[str]], split: str) -> dict[tuple, list[str]]:
    folders = {key: "/".join(key[:-1]) for key in images}
    if not mentioned_splits(set(folders.values())):
        return images
    for word in SPLIT_NAMES[split]:  # "val" before "valid" before "test"
        chosen = {key: names for key, names in images.items() if mentions(folders[key], word)}
        if chosen:
            return chosen
    return {}


def _report_doubles(images: dict, labels: dict, problems: Problems) -> None:
    """Images that differ only in their suffix and would share a label, and second labels of an image."""
    for key, (image, *others) in images.items():
        for other in others:
            problems.append(f"{other} and {image} differ only in their suffix; rename or remove one of the two")
        for other in labels.get(key, ())[1:]:
            problems.append(f"{other} and {labels[key][0]} are labels of the same image; remove one of the two")


def _report_unpaired(tree: Tree, found: list, unused: list[str], suffixes: tuple[str, ...], problems: Problems) -> None:
    """Adds problems if no image has a label: label files of other names, JPEG labels. Warns of skipped files."""
    paired = any(label for _, label in found)
    if unused and found and not paired:
        problems.append(f"{min(unused)}: no image has the name of a label file; give both the same name")
    elif unused:
        logger.warning_once(f"{tree}: {len(unused)} label files without an image are skipped, such as {min(unused)}")
    roles = {name: _role(name)[0] for name in tree.names}
    lossy = [name for name in tree.names if roles[name] == "label" and name.lower().endswith((".jpg", ".jpeg"))]
    if lossy and not paired and ".png" in suffixes:
        problems.append(f"{lossy[0]}: JPEG compression changes the values of labels; save label images as PNG")
    heic = [name for name in tree.names if roles[name] == "image" and name.lower().endswith(HEIC_SUFFIXES)]
    if heic:
        logger.warning_once(f"{tree}: {len(heic)} HEIC images are skipped, such as {heic[0]}; convert them to JPEG")


def has_label_images(tree: Tree) -> bool:
    return any(label for split in SPLIT_NAMES for _, label in pairs(tree, split, LABEL_SUFFIXES))


def image_ids(images: list[str]) -> dict[str, str]:
    """Ids of images: their stems, or paths without suffix if stems repeat."""
    stems = {image: PurePosixPath(image).stem for image in images}
    unique = len(set(stems.values())) == len(stems)
    return stems if unique else {image: str(PurePosixPath(image).with_suffix("")) for image in images}


def _by_key(tree: Tree, suffixes: tuple[str, ...]) -> tuple[dict[tuple, list[str]], dict[tuple, list[str]]]:
    """Images and label files by a common key: the parts of the path, without image or label folder and suffix."""
    images, labels = defaultdict(list), defaultdict(list)
    beside = _masks_beside(tree)
    for name in tree.names:
        path = PurePosixPath(name)
        suffix = path.suffix.lower()
        role, place = _role(name)
        if name in beside:
            labels[*path.parts[:-1], LABEL_ENDING.sub("", path.stem)].append(name)
        elif beside and suffix in IMAGE_SUFFIXES:
            images[*path.parts[:-1], path.stem].append(name)
        elif role:
            key = (*path.parts[:place], *path.parts[place + 1 : -1], path.stem)
            if role == "image" and suffix in IMAGE_SUFFIXES:
                images[key].append(name)
            elif role == "label" and suffix in suffixes:
                labels[key].append(name)
    for key in [key for key in labels if key not in images]:
        plain = (*key[:-1], LABEL_ENDING.sub("", key[-1]))
        if plain in images:
            labels[plain] += labels.pop(key)
    return images, labels


def _role(name: str) -> tuple[str | None, int]:
    """ "image" or "label" by the first folder with such a name, and the position of the folder in the path."""
    for place, part in enumerate(PurePosixPath(name.lower()).parts[:-1]):
        if part in IMAGE_FOLDERS:
            return "image", place
        if part in LABEL_FOLDERS:
            return "label", place
    return None, 0


def _masks_beside(tree: Tree) -> set[str]:
    """Label images `a_mask.png` beside their image `a.jpg`, if there are no image and label folders."""
    if any(_role(name)[0] for name in tree.names):
        return set()
    stems = {name: str(PurePosixPath(name).with_suffix("")) for name in tree.names}
    known = set(stems.values())
    masks = {name for name, stem in stems.items() if name.endswith(".png") and LABEL_ENDING.search(stem)}
    return {name for name in masks if LABEL_ENDING.sub("", stems[name]) in known}


# --- classes ----------------------------------------------------------------------------------------------------------


def numbered_space(
    path: Path, names: dict[int, str] | None, labels: list[tuple[str, str]], options: ReadOptions
) -> LabelSpace:
    """The label space of label images with class numbers as values.

    Args:
        names: {value: class name}. None: every value in the label images is a class.
        labels: (location, name in error messages) of label images, read if `names` is None, {0: …} or {0: …, 1: …}.

    Raises:
        ValueError: for label images without a class, and for masks of 0 and 255 of which only 0 has a name.
    """
    has_one, has_two = names is not None and set(names) == {0}, names is not None and set(names) == {0, 1}
    values = set(names or ())
    if names is None or has_one or has_two:  # the label images may have 255 instead of 1
        values = _values_of(labels, until=1 if has_two else None)
    ignored = (*options.ignore_ids, VOID_VALUES[2])
    if has_one and IGNORE_INDEX in values - {*ignored}:
        raise ValueError(
            f"{path}: the label images have the values 0 and 255, but only 0 has a name, {names[0]!r}; name both, such "
            f"as background,{names[0]}"
        )
    binary = values - {*ignored} == {0, IGNORE_INDEX}  # 255 is the foreground
    if names is None:
        names = {value: f"class_{value}" for value in values}
    elif has_two and binary:
        names = {0: names[0], IGNORE_INDEX: names[1]}
    has_255 = binary or max(names, default=0) > IGNORE_INDEX  # in 16 bits, 255 is a class like others
    ids = sorted(i for i in names if i not in ignored and (has_255 or i != IGNORE_INDEX))
    if not ids:
        raise ValueError(f"{path}: the label images have no class")
    return LabelSpace(str(path), tuple(names[i] for i in ids), (), tuple(ids), ignored)


def _values_of(labels: list[tuple[str, str]], until: int | None) -> set[int]:
    """The values of label images, which are read up to the first one with the value `until`."""
    values: set[int] = set()
    for location, name in tqdm(labels, desc="classes in the label images", leave=False, disable=len(labels) < 200):
        with naming(name):
            values.update(distinct_values(read_classes(location)))
        if until in values:
            break
    return values


def _classes_file(tree: Tree) -> dict[int, str] | None:
    if "classes.json" in tree.names:
        return numbered_classes(tree.json("classes.json"), f"{tree}/classes.json")
    csv_file = next((name for name in tree.names if PurePosixPath(name).name == "_classes.csv"), None)
    if csv_file:  # Roboflow's: "Pixel Value, Class"
        lines = list(csv.reader(tree.text(csv_file).splitlines()))[1:]
        return numbered_classes({line[0]: line[1].strip() for line in lines if len(line) == 2}, f"{tree}/{csv_file}")
    if "classes.txt" in tree.names:
        lines = tree.text("classes.txt").splitlines()
        return {i: line.strip() for i, line in enumerate(lines) if line.strip()}
    return None


def numbered_classes(names, source: str) -> dict[int, str]:
    """{number: name} of a list of names or a JSON object {number: name}."""
    if not isinstance(names, (list, dict)):
        raise ValueError(f"{source}: class names must be a list or {{number: name}}, not {names!r:.60}")
    numbered = {}
    for number, name in names.items() if isinstance(names, dict) else enumerate(names):
        if isinstance(number, str) and re.fullmatch(r"\s*\d{1,18}\s*", number):
            number = int(number)
        if not is_id(number) or number < 0 or number in numbered:
            raise ValueError(f"{source}: class number {number!r:.60} is repeated or not an integer from 0")
        if not isinstance(name, str | int | float):  # YAML can nest without end
            raise ValueError(f"{source}: the name of class {number} is not text, but a {type(name).__name__}")
        numbered[number] = str(name)
    return numbered


def _class_dict(tree: Tree) -> dict[int, str] | None:
    """The colors of `class_dict.csv`, None without the file."""
    if "class_dict.csv" not in tree.names:
        return None
    lines = [[cell.strip() for cell in row] for row in csv.reader(tree.text("class_dict.csv").splitlines())]
    if lines and [cell.lower() for cell in lines[0][1:]] == ["r", "g", "b"]:
        lines[0] = []  # the header
    return class_colors([(row[0], row[1:]) if any(row) else None for row in lines], f"{tree}/class_dict.csv")


def class_colors(lines: Iterable[tuple[str, list[str]] | None], source: str) -> dict[int, str]:
    """{R + 256 G + 65536 B: name} of lines (name, [r, g, b] as text). Empty lines are None."""
    names: dict[int, str] = {}
    for number, line in enumerate(lines, 1):
        if line is None:
            continue
        name, color = line
        if len(color) != 3 or not all(re.fullmatch(r"\s*\d{1,3}\s*", part) and int(part) < 256 for part in color):
            raise ValueError(f"{source}, line {number}: {name!r:.60} needs a color r,g,b of 0 … 255, not {color!r:.60}")
        red, green, blue = map(int, color)
        packed = red + 256 * green + 65536 * blue
        if packed in names:
            raise ValueError(f"{source}, line {number}: {name!r} has the color of {names[packed]!r}")
        names[packed] = name
    return names
