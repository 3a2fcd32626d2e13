"""Pseudo-labels: predictions of `eomt predict` as annotations for training.

images.json       {"images": [{"id", "file_name", "path", …}], "categories": [{"id", "name", "isthing"}]}
panoptic.json     and panoptic/*.png          instances.json           labels/*.png and confidence/*.png
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from ...configuration.labels import VOID_VALUES, LabelSpace
from .coco import instance_segments, panoptic_segments
from .files import IMAGE_SUFFIXES, Tree, naming, safe_name
from .predictions import PredictionIndex
from .rows import ReadOptions, Rows, is_number, member, objects


def is_predicted(tree: Tree, task: str) -> bool:
    return {"images.json", "run.json"} <= set(tree.names)


def read_predicted(path: Path, task: str, split: str, options: ReadOptions) -> tuple[Rows, LabelSpace]:
    """Rows and label space of a folder of predictions, which is a single split.

    Segments with a score below `options.score_floor` become crowds, which training leaves out. Pixels of label images
    with a confidence below it are unlabeled.
    """
    tree = Tree(path)
    index = PredictionIndex(tree)
    labels = index.labels if task == "panoptic" else replace(index.labels, stuff_label_ids=())
    space = options.match(labels, path)
    is_colored = task == "semantic" and max(labels.dataset_ids) >= VOID_VALUES[2]
    rows = Rows(str(path), "semantic_colors" if is_colored else task, options.score_floor)
    images = {image["id"]: image for image in index.images}
    segments: dict = {key: [] for key in images}
    pngs: dict = {}
    if task == "panoptic":
        annotations = member(_json(tree, "panoptic.json"), "annotations")
        with naming(f"{tree}/panoptic.json"):
            _mark_uncertain((s for entry in annotations for s in member(entry, "segments_info")), options.score_floor)
        segments, pngs = panoptic_segments(annotations, images, space, (), tree.below("panoptic"), rows)
    elif task == "instance":
        annotations = objects(_json(tree, "instances.json"))
        with naming(f"{tree}/instances.json"):
            _mark_uncertain(annotations, options.score_floor)
        annotations = [entry | {"id": number} for number, entry in enumerate(annotations)]
        segments = instance_segments(annotations, images, space, rows)
    as_text = any(isinstance(key, str) for key in images)
    for key, image in images.items():
        with rows.problems.at(f"{index.source}: image {key!r}"):
            location = _image_file(tree, image)
            png = pngs.get(key, "")
            confidence = ""
            if task == "semantic":
                png = safe_name(image.get("sem_seg_file_name") or "")
                if options.score_floor:
                    confidence = _confidence(tree, png)
                png = tree.locate(png)
            if segments[key] or options.keep_empty or task == "semantic":
                rows.add(str(key) if as_text else key, image["file_name"], location, png, confidence, segments[key])
    return rows, space


def _image_file(tree: Tree, image: dict) -> str:
    """The path of the image, which may be outside of the folder. Only regular image files are accepted."""
    if not isinstance(image.get("path"), str):
        raise ValueError("it has no 'path'; predict again")
    file = Path(tree.root, image["path"])
    if file.suffix.lower() not in IMAGE_SUFFIXES or not file.is_file():
        raise ValueError(f"{image['path']!r} is not an image file; predict again")
    return str(file)


def _confidence(tree: Tree, png: str) -> str:
    """The location of the confidence map beside a label image."""
    name = "confidence/" + png.removeprefix("labels/")
    if name not in tree.names:
        raise ValueError(f"score_floor needs {name}; predict again with confidence")
    return tree.locate(name)


def _mark_uncertain(entries: Iterable[dict], score_floor: float) -> None:
    """Make crowds of the entries with a score below `score_floor`, in place."""
    for entry in entries:
        score = entry.get("score", 1.0)
        if not is_number(score):
            raise ValueError(f"a score is {score!r}, not a number")
        entry["iscrowd"] = int(score < score_floor)


def _json(tree: Tree, name: str):
    if name not in tree.names:
        raise ValueError(f"{tree}: there is no {name}; these are predictions of another task")
    return tree.json(name)
