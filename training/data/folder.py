"""Own data without a json: a folder of images beside a folder of label png (semantic) or YOLO txt (instance).

    {train,val}/images/a.jpg   {train,val}/labels/a.png            or   images/{train,val}/…   labels/{train,val}/…
    images/a.jpg               labels/a.png                        no split: both splits are all of it

Image folders may also be called `image`, `imgs` or `img`, label folders `label`, `annotations` or `masks`. Semantic
classes: `classes.txt` (line i names pixel value i), `classes.json` ({"0": "sky", …}; other values are ignored),
`class_dict.csv` (name,r,g,b) where the pngs show classes as colors, else every value found in the pngs. YOLO:
`data.yaml` with `names` (ultralytics' and Roboflow's), lines "class x1 y1 x2 y2 …" in fractions of width and height.
"""

import csv
import re
from pathlib import Path, PurePosixPath

import yaml
from tqdm.auto import tqdm

from ...configuration.labels import IGNORE_INDEX, LabelSpace
from .decode import _values
from .files import IMAGE_SUFFIXES, SPLIT_NAMES, Tree, image_size, read_classes
from .rows import Rows, is_id, segment

IMAGE_FOLDERS = ("images", "image", "imgs", "img")
LABEL_FOLDERS = ("labels", "label", "annotations", "annotation", "masks", "mask")
MOST_YAML = 1 << 19  # bytes; PyYAML reads a few hundred thousand a second


def pairs(tree: Tree, split: str, suffix: str, rows: Rows | None = None) -> list[tuple[str, str | None]]:
    """(image, label or None) of a split, paired by path and stem. Without any split folder: everything.

    Images that differ in their suffix only would share a label: a problem, told to `rows`.
    """
    images: dict[tuple, str] = {}
    others: list[tuple[tuple, str]] = []
    labels: dict[tuple, str] = {}
    twice: list[tuple[tuple, str]] = []
    for name in tree.names:
        path = PurePosixPath(name)
        parts = [part.lower() for part in path.parts]
        role = next((i for i, part in enumerate(parts[:-1]) if part in (*IMAGE_FOLDERS, *LABEL_FOLDERS)), None)
        if role is None:
            continue
        key = (*path.parts[:role], *path.parts[role + 1 : -1], path.stem)
        if parts[role] in IMAGE_FOLDERS:
            if path.suffix.lower() in IMAGE_SUFFIXES and images.setdefault(key, name) != name:
                others.append((key, name))
        elif path.suffix.lower() == suffix and labels.setdefault(key, name) != name:
            twice.append((key, name))
    known = {word for names in SPLIT_NAMES.values() for word in names}
    if any(part in known for key in images for part in key[:-1]):
        for word in SPLIT_NAMES[split]:  # "val" before "valid" before "test"
            chosen = {key: name for key, name in images.items() if word in key[:-1]}
            if chosen:
                break
        images = chosen
    for key, name in others if rows is not None else ():
        if key in images:
            rows.problem(name, f"{images[key]} has the same name but for the suffix; rename or remove one of the two")
    for key, name in twice if rows is not None else ():
        if key in images:
            rows.problem(name, f"{labels[key]} is a label of the same image; remove one of the two")
    return [(images[key], labels.get(key)) for key in sorted(images)]


def is_yolo(tree: Tree) -> bool:
    return any(PurePosixPath(n).suffix == ".txt" and "labels" in PurePosixPath(n).parts[:-1] for n in tree.names)


def read_semantic(
    path: Path, split: str, ignore_ids: tuple[int, ...], names: dict[int, str] | None, default: dict[int, str] | None
):
    """(rows, label space) of a folder of images and label pngs. `names`: pixel value → class, over any classes file;
    `default`: a model's, for data that does not name its classes."""
    tree = Tree(path)
    colors = class_colors(tree)
    rows = Rows(str(path), "semantic_colors" if colors else "semantic")
    found = pairs(tree, split, ".png", rows)
    image_id = _ids([image for image, _ in found])
    for image, label in found:
        if label is None:
            rows.problem(image, "there is no label png of the same name")
        else:
            rows.add(image_id[image], image, tree.locate(image), tree.locate(label))
    names = colors or names or _classes_file(tree) or default
    if names is None:  # the values of the training split name the classes, for validation too
        source = pairs(tree, "train", ".png") or found
        values = set()
        for _, label in tqdm(source, desc="classes in the label pngs", leave=False, disable=len(source) < 200):
            if label:
                values.update(_values(read_classes(tree.locate(label), label)))
        names = {value: f"class_{value}" for value in sorted(values)}
    ids = sorted(i for i in names if i not in ignore_ids and (colors or i != IGNORE_INDEX))
    if not ids and not rows.problems:
        raise ValueError(f"{path}: the data set is empty; no class was found in its label images")
    space = LabelSpace(str(path), tuple(names[i] for i in ids) or ("none",), (), tuple(ids) or (0,), tuple(ignore_ids))
    return rows, space


def _ids(images: list[str]) -> dict[str, str]:
    """What an image is called: its stem, or its whole path where two folders have the same stem."""
    stems = {image: PurePosixPath(image).stem for image in images}
    unique = len(set(stems.values())) == len(stems)
    return stems if unique else {image: str(PurePosixPath(image).with_suffix("")) for image in images}


def _classes_file(tree: Tree) -> dict[int, str] | None:
    if "classes.json" in tree.names:
        return _numbered(tree.json("classes.json"), f"{tree}/classes.json")
    if "classes.txt" in tree.names:
        lines = tree.text("classes.txt").splitlines()
        return {i: line.strip() for i, line in enumerate(lines) if line.strip()}
    return None


def _numbered(names, source: str) -> dict[int, str]:
    """A list of names, or {number: name} → {number: name}."""
    if not isinstance(names, (list, dict)):
        raise ValueError(f"{source}: class names must be a list or numbered, not {names!r:.60}")
    numbered = {}
    for number, name in names.items() if isinstance(names, dict) else enumerate(names):
        if isinstance(number, str) and re.fullmatch(r"\s*\d{1,18}\s*", number):
            number = int(number)
        if not is_id(number) or number < 0 or number in numbered:
            raise ValueError(f"{source}: classes are numbered by integers, each by its own, not as in {number!r:.60}")
        if not isinstance(name, str | int | float):  # a yaml's may be nested without end
            raise ValueError(f"{source}: the name of class {number} is no text, but a {type(name).__name__}")
        numbered[number] = str(name)
    return numbered


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


def read_yolo(path: Path, split: str, space_of, keep_empty: bool) -> tuple[Rows, LabelSpace]:
    """(rows, label space) of YOLO segmentation txt. An image without a txt, or with an empty one, has no objects."""
    tree = Tree(path)
    rows = Rows(str(path), "instance")
    space = space_of(_yolo_space(tree))
    found = pairs(tree, split, ".txt", rows)
    image_id = _ids([image for image, _ in found])
    for image, label in found:
        segments = []
        lines = tree.text(label).splitlines() if label else []
        try:
            height, width = image_size(tree.locate(image), image) if lines else (1, 1)
        except ValueError as error:
            rows.problem(str(path), str(error))
            continue
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    segments.append(_yolo_line(line, number, height, width, space))
                except ValueError as error:
                    rows.problem(f"{label}, line {number}", str(error))
        if keep_empty or segments:
            rows.add(image_id[image], image, tree.locate(image), segments=segments)
    return rows, space


def _yolo_line(line: str, number: int, height: int, width: int, space: LabelSpace) -> dict:
    fields = line.split()
    try:
        values = [float(field) for field in fields[1:]]
        category = int(fields[0])
    except ValueError:
        raise ValueError(f"{line[:40]!r} is not a class number and coordinates") from None
    if category not in space.dataset_id_to_label:
        raise ValueError(f"class {category} is not in data.yaml, which names {space.num_labels} classes")
    if len(values) < 6 or len(values) % 2:
        hint = " (a box of YOLO detection; segmentation is needed)" if len(values) == 4 else ""
        raise ValueError(f"a polygon needs an even number of at least 6 coordinates, not {len(values)}{hint}")
    if not all(-1e-3 <= v <= 1 + 1e-3 for v in values):
        raise ValueError("coordinates must be fractions of the image's width and height, 0 … 1")
    polygon = [min(max(v, 0.0), 1.0) * (width, height)[i % 2] for i, v in enumerate(values)]
    return segment(number, space.dataset_id_to_label[category], shape=[polygon])


def _yolo_space(tree: Tree) -> LabelSpace:
    file = next((n for n in tree.names if PurePosixPath(n).name in ("data.yaml", "dataset.yaml", "data.yml")), None)
    if file is None:
        raise ValueError(f"{tree}: YOLO labels need a data.yaml with 'names'")
    try:
        data = yaml.safe_load(tree.text(file, MOST_YAML))
    except (
        yaml.YAMLError,
        RecursionError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
    ) as error:  # PyYAML's own
        raise ValueError(f"{tree}/{file}: not a readable yaml file ({' '.join(str(error).split())})") from None
    if not isinstance(data, dict) or not data.get("names"):
        raise ValueError(f"{tree}/{file}: it has no 'names'")
    classes = _numbered(data["names"], f"{tree}/{file}")
    return LabelSpace(f"{tree}/{file}", tuple(classes[i] for i in sorted(classes)), (), tuple(sorted(classes)))
