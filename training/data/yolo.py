"""YOLO segmentation (Ultralytics, Roboflow): `data.yaml` with `names`, and one text file per image (`folders.pairs`).

Each line is a segment: "class x1 y1 x2 y2 …", coordinates in fractions of the image's width and height.
"""

from pathlib import Path, PurePosixPath

import yaml

from ...configuration.labels import LabelSpace
from .files import Tree
from .folders import image_ids, numbered_classes, pairs
from .images import size_of
from .rows import ReadOptions, Rows, segment_entry

MAX_YAML_BYTES = 1 << 19  # PyYAML reads a few hundred thousand bytes per second
YAML_ERRORS = (yaml.YAMLError, RecursionError, ValueError, TypeError, LookupError, AttributeError)
"""Errors of PyYAML for malformed files."""


def is_yolo(tree: Tree, task: str) -> bool:
    paths = map(PurePosixPath, tree.names)
    return task == "instance" and any(path.suffix == ".txt" and "labels" in path.parts[:-1] for path in paths)


def read_yolo(path: Path, task: str, split: str, options: ReadOptions) -> tuple[Rows, LabelSpace]:
    """Rows and label space of one split. An image has no segments if its text file is missing or empty."""
    tree = Tree(path)
    rows = Rows(str(path), "instance")
    space = options.match(_own_classes(tree), path)
    found = pairs(tree, split, (".txt",), rows.problems)
    image_id = image_ids([image for image, _ in found])
    for image, label in found:
        segments = []
        with rows.problems.at(f"{path}: {image}"):
            lines = tree.text(label).splitlines() if label else []
            height, width = size_of(tree.locate(image)) if lines else (1, 1)
            for number, line in enumerate(lines, 1):
                with rows.problems.at(f"{label}, line {number}"):
                    if line.strip():
                        segments.append(_polygon(line, number, height, width, space))
            if segments or options.keep_empty:
                rows.add(image_id[image], image, tree.locate(image), segments=segments)
    return rows, space


def _polygon(line: str, number: int, height: int, width: int, space: LabelSpace) -> dict:
    """The segment of one line."""
    category, *values = line.split()
    category, values = int(category), [float(value) for value in values]
    if category not in space.dataset_id_to_label:
        raise ValueError(f"class {category} is not among the {space.num_labels} classes of data.yaml")
    if len(values) < 6 or len(values) % 2:
        hint = " (a box of YOLO detection; segmentation needs polygons)" if len(values) == 4 else ""
        raise ValueError(f"a polygon needs an even number of at least 6 coordinates, not {len(values)}{hint}")
    if not all(-1e-3 <= value <= 1 + 1e-3 for value in values):
        raise ValueError("coordinates must be fractions of the image's width and height, 0 … 1")
    fractions = [min(max(value, 0.0), 1.0) for value in values]
    polygon = [fraction * (width, height)[i % 2] for i, fraction in enumerate(fractions)]  # x and y alternate
    return segment_entry(number, space.dataset_id_to_label[category], shape=[polygon])


def _own_classes(tree: Tree) -> LabelSpace:
    file = next((n for n in tree.names if PurePosixPath(n).name in ("data.yaml", "dataset.yaml", "data.yml")), None)
    if file is None:
        raise ValueError(f"{tree}: YOLO labels need a data.yaml with 'names'")
    source = f"{tree}/{file}"
    try:
        data = yaml.safe_load(tree.text(file, MAX_YAML_BYTES))
    except YAML_ERRORS as error:
        reason = " ".join(str(error).split())  # one line
        raise ValueError(f"{source}: not a readable YAML file ({reason})") from None
    if not isinstance(data, dict) or not data.get("names"):
        raise ValueError(f"{source}: it has no 'names'")
    classes = numbered_classes(data["names"], source)
    return LabelSpace(source, tuple(classes[i] for i in sorted(classes)), (), tuple(sorted(classes)))
