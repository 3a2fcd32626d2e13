"""What `eomt predict` wrote, read as data: pseudo-labels for training on images without annotations.

images.json       {"images": [{"id", "file_name", "path", …}], "categories": [{"id", "name", "isthing"}]}
panoptic.json     and panoptic/*.png          instances.json           labels/*.png
"""

from pathlib import Path

from ....configuration.labels import LabelSpace
from ..files import IMAGE_SUFFIXES, Tree, safe_name
from ..polygons import check_shape
from ..prediction_index import PredictionIndex
from ..rows import Rows, segment
from .options import ReadOptions

LARGEST_VALUES = (65535, 0xFFFFFF)  # unlabeled in label images of two bytes and of colors; 255 is so everywhere


def is_predicted(tree: Tree) -> bool:
    return {"images.json", "run.json"} <= set(tree.names)


def read_predicted(path: Path, task: str, split: str, options: ReadOptions) -> tuple[Rows, LabelSpace]:
    """Rows and label space of a folder of predictions; there is one split, all of it.

    Segments that score less than `options.score_floor` are crowds, which training leaves out.
    """
    try:
        return _read(path, task, options)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: its json is not what eomt predict writes ({error!r}); predict again") from None


def _read(path: Path, task: str, options: ReadOptions) -> tuple[Rows, LabelSpace]:
    tree = Tree(path)
    index = PredictionIndex(tree)
    if options.score_floor and task == "semantic":
        raise ValueError(f"{path}: score_floor {options.score_floor} is for panoptic and instance predictions")
    categories = sorted(index.things.items())
    names = tuple(index.categories[i] for i, _ in categories)
    stuff = tuple(label for label, (_, is_thing) in enumerate(categories) if task == "panoptic" and not is_thing)
    ids = tuple(i for i, _ in categories)
    ignored = tuple(value for value in LARGEST_VALUES if value not in ids)
    space = options.match(LabelSpace(str(path), names, stuff, ids, ignored), path)
    layout = "semantic_colors" if task == "semantic" and max(ids) >= LARGEST_VALUES[0] else task
    rows = Rows(str(path), layout)
    annotations = _annotations(tree, task)
    as_text = any(isinstance(image["id"], str) for image in index.images)
    for image in index.images:
        where = f"{index.source}: image {image['id']!r}"
        if not isinstance(image.get("path"), str):
            rows.problem(where, "its file is not named as 'path'; predict again")
            continue
        file = Path(tree.root, image["path"])  # may lie anywhere, but is an image: no device, no pipe
        if file.suffix.lower() not in IMAGE_SUFFIXES or not file.is_file():
            rows.problem(where, f"{image['path']!r} is no image file; predict again")
            continue
        segments, png = [], ""
        for entry in annotations.get(image["id"], []):
            infos = [entry]
            if task == "panoptic":
                infos, png = entry["segments_info"], tree.locate(f"panoptic/{safe_name(entry['file_name'], where)}")
            for info in infos:
                number, category = len(segments) + 1, info["category_id"]
                if category not in space.dataset_id_to_label:
                    rows.problem(where, f"category {category!r} is not in the categories")
                    continue
                shape = info["segmentation"] if task == "instance" else ""
                fault = check_shape(shape, (None, None)) if shape else None
                if fault:
                    rows.problem(where, fault)
                    continue
                uncertain = info.get("score", 1.0) < options.score_floor
                label = space.dataset_id_to_label[category]
                segments.append(segment(info.get("id", number), label, uncertain, info.get("area", -1), shape))
        if task == "semantic":
            png = tree.locate(safe_name(image["sem_seg_file_name"], where))
        if options.keep_empty or segments or task == "semantic":
            image_id = str(image["id"]) if as_text else image["id"]
            rows.add(image_id, image["file_name"], str(file), png, segments=segments)
    return rows, space


def _annotations(tree: Tree, task: str) -> dict:
    """Image id → its entries of the json; none for label images."""
    if task == "semantic":
        return {}
    name = "panoptic.json" if task == "panoptic" else "instances.json"
    if name not in tree.names:
        raise ValueError(f"{tree}: it has no {name}; these are predictions of another task")
    data = tree.json(name)
    entries = data["annotations"] if task == "panoptic" else data
    found: dict = {}
    for entry in entries:
        found.setdefault(entry["image_id"], []).append(entry)
    return found
