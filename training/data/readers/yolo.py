"""YOLO segmentation: `data.yaml` with `names` (ultralytics' and Roboflow's), one txt an image (pairs.py).

A line is "class x1 y1 x2 y2 …" in fractions of width and height.
"""

from pathlib import Path, PurePosixPath

import yaml

from ....configuration.labels import LabelSpace
from ..files import Tree
from ..images import size_of
from ..rows import Rows, segment
from .options import ReadOptions
from .pairs import image_ids, numbered_classes, pairs

MOST_YAML = 1 << 19  # bytes; PyYAML reads a few hundred thousand a second


def is_yolo(tree: Tree) -> bool:
    return any(PurePosixPath(n).suffix == ".txt" and "labels" in PurePosixPath(n).parts[:-1] for n in tree.names)


def read_yolo(path: Path, task: str, split: str, options: ReadOptions) -> tuple[Rows, LabelSpace]:
    """Rows and label space of YOLO segmentation txt. An image without a txt, or with an empty one, has no objects."""
    tree = Tree(path)
    rows = Rows(str(path), "instance")
    space = options.match(_yolo_space(tree), path)
    found = pairs(tree, split, (".txt",), rows)
    image_id = image_ids([image for image, _ in found])
    for image, label in found:
        segments = []
        lines = tree.text(label).splitlines() if label else []
        try:
            height, width = size_of(tree.locate(image), image) if lines else (1, 1)
        except ValueError as error:
            rows.problem(str(path), str(error))
            continue
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    segments.append(_yolo_line(line, number, height, width, space))
                except ValueError as error:
                    rows.problem(f"{label}, line {number}", str(error))
        if options.keep_empty or segments:
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
    classes = numbered_classes(data["names"], f"{tree}/{file}")
    return LabelSpace(f"{tree}/{file}", tuple(classes[i] for i in sorted(classes)), (), tuple(sorted(classes)))
