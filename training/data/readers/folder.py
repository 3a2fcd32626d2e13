"""Semantic own data: images and label pngs in folders (pairs.py).

Classes: `classes.txt` (line i names pixel value i), `classes.json` ({"0": "sky", …}; other values are ignored),
`class_dict.csv` (name,r,g,b) where the pngs show classes as colors, else every value found in the pngs. Masks of
0 and 255 only are binary: 255 is the foreground. Else the values 255 and 65535, and a color that is called void, are
unlabeled.
"""

import csv
import re
from pathlib import Path, PurePosixPath

from tqdm.auto import tqdm

from ....configuration.labels import IGNORE_INDEX, LabelSpace
from ..files import SPLIT_NAMES, Tree
from ..images import distinct_values, read_classes
from ..rows import Rows
from .options import ReadOptions
from .pairs import LABEL_SUFFIXES, image_ids, numbered_classes, pairs

LARGEST_VALUE = 65535  # of 16 bits: what 255 is for 8


def read_folder(path: Path, task: str, split: str, options: ReadOptions) -> tuple[Rows, LabelSpace]:
    """Rows and label space of a folder of images and label pngs; a model names the classes of data that does not."""
    tree = Tree(path)
    colors = class_colors(tree)
    rows = Rows(str(path), "semantic_colors" if colors else "semantic")
    found = pairs(tree, split, LABEL_SUFFIXES, rows)
    annotations = [name for name in tree.names if name.endswith(".json") and name != "classes.json"]
    if annotations and not found:
        raise ValueError(
            f"{path}: no images with label pngs were found for semantic segmentation; if {annotations[0]} holds COCO "
            "annotations, the task is panoptic or instance"
        )
    image_id = image_ids([image for image, _ in found])
    for image, label in found:
        if label is None:
            rows.problem(image, "there is no label png of the same name")
        else:
            rows.add(image_id[image], image, tree.locate(image), tree.locate(label))
    if colors:
        void = [color for color, name in colors.items() if name.lower() == "void"]
        ignored = (*options.ignore_ids, *void)
        ids = sorted(color for color in colors if color not in ignored)
        space = LabelSpace(str(path), tuple(colors[color] for color in ids), (), tuple(ids), ignored)
    else:
        names = options.class_names or _classes_file(tree) or options.known_names
        source = pairs(tree, "train", LABEL_SUFFIXES) or found  # its values name the classes, for validation too
        labels = [(tree.locate(label), label) for _, label in source if label]
        if not labels and rows.problems:
            rows.table()  # raises what is wrong with the labels
        space = numbered_space(path, names, labels, options)
    return rows, options.match(space, path)


def numbered_space(
    path: Path, names: dict[int, str] | None, labels: list[tuple[str, str]], options: ReadOptions
) -> LabelSpace:
    """The label space of label images whose values are classes.

    Args:
        names: value → class; None: every value found is a class.
        labels: (location, what errors call it) of the label images to look into then.
    """
    values = set(names or ())
    if names is None:
        for location, name in tqdm(labels, desc="classes in the label images", leave=False, disable=len(labels) < 200):
            values.update(distinct_values(read_classes(location, name)))
        names = {value: f"class_{value}" for value in values}
    binary = values - {*options.ignore_ids, LARGEST_VALUE} == {0, IGNORE_INDEX}  # 255 is the foreground then
    ignored = (*options.ignore_ids, LARGEST_VALUE)
    ids = sorted(i for i in names if i not in ignored and (binary or i != IGNORE_INDEX))
    if not ids:
        raise ValueError(f"{path}: the data set is empty; no class was found in its label images")
    return LabelSpace(str(path), tuple(names[i] for i in ids), (), tuple(ids), ignored)


def has_label_images(tree: Tree) -> bool:
    return any(label for split in SPLIT_NAMES for _, label in pairs(tree, split, LABEL_SUFFIXES))


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


def class_colors(tree: Tree) -> dict[int, str] | None:
    """`class_dict.csv`: {R + 256 G + 65536 B: name}, None where there is none."""
    if "class_dict.csv" not in tree.names:
        return None
    source, names = f"{tree}/class_dict.csv", {}
    for number, row in enumerate(csv.reader(tree.text("class_dict.csv").splitlines()), 1):
        name, *color = (cell.strip() for cell in row) if row else ("",)
        if (number == 1 and [cell.lower() for cell in color] == ["r", "g", "b"]) or not any((name, *color)):
            continue
        if len(color) != 3 or not all(re.fullmatch(r"\d{1,3}", part) and int(part) < 256 for part in color):
            raise ValueError(f"{source}, line {number}: {','.join(row)!r:.60} is not name,r,g,b with colors of 0 … 255")
        red, green, blue = map(int, color)
        packed = red + 256 * green + 65536 * blue
        if packed in names:
            raise ValueError(f"{source}, line {number}: {name!r} has the color of {names[packed]!r}")
        names[packed] = name
    if not names:
        raise ValueError(f"{source}: it has no classes; write a line name,r,g,b for each")
    return names
