"""Predictions of any tool, in the file formats of the official evaluation servers.

    panoptic   `panoptic.json` {"annotations": [{"image_id", "file_name", "segments_info": [{"id", "category_id"}]}]}
               and `panoptic/*.png`, id = R + 256 G + 65536 B, 0 void; COCO, ADE20K panoptic
    instance   `instances.json` [{"image_id", "category_id", "segmentation": RLE, "score"}]; COCO
    semantic   `*.png`, one channel; Cityscapes label ids, ADE20K 1 … 150

All ids are those of the data set (`LabelSpace.dataset_ids`). Predictions of `eomt predict` come with `images.json`:
their images are matched by file name, because plain images have no ids, and their categories by name.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from ...configuration.labels import VOID_VALUES, LabelSpace
from .coco import instance_segments, panoptic_segments
from .files import Tree, naming
from .images import read_classes, read_colors, read_map
from .polygons import to_rle
from .rows import Rows, is_id, is_number, match_labels, member, objects
from .samples import to_labels

_UNNAMED = re.compile(r"(class|LABEL)_\d+")  # placeholder names


def read_predictions(path: str | Path, task: str, label_space: LabelSpace, dataset) -> Iterator[tuple[dict, object]]:
    """Read the prediction of each image of a data set, for any task.

    Args:
        path: folder of the prediction files, or a JSON file in it.
        task: "panoptic", "instance" or "semantic".
        label_space: label space of the data set.
        dataset: data set with `EvaluationTransform`.

    Yields:
        (sample, prediction), in the order of the data set.

    Raises:
        ValueError: with file and id, for an image without a prediction (except instances), a prediction without an
            image, an unknown category, or a repeated id.
    """
    tree = predictions_folder(path)
    plain = dataset.with_format(None)
    images = plain["image_id"][:]
    index = PredictionIndex.find(tree)
    if index:
        ids = index.image_ids(plain)  # {image id of the predictions: image id of the data set}
        space = index.space(label_space)
    else:
        ids = dict(zip(images, images))
        space = label_space
    if task == "semantic":
        read = read_colors if plain[0]["layout"] == "semantic_colors" else read_classes
        prediction_of = _semantic(tree, index, ids, space, images, read)
    else:
        name = None if Path(path).is_dir() else Path(path).name
        read_all = _panoptic if task == "panoptic" else _instance
        prediction_of = read_all(tree, name, ids, space, images)
    for position, image_id in enumerate(images):
        sample = dataset[position]
        yield sample, prediction_of(image_id, tuple(sample["image"].shape[1:]))


def predictions_folder(path: str | Path) -> Tree:
    """The folder of the predictions, given the folder or a JSON file in it."""
    return Tree(path if Path(path).is_dir() else Path(path).parent)


def _panoptic(tree: Tree, name: str | None, ids: dict, space: LabelSpace, images: list):
    name, data = _json(tree, name, "annotations", lambda data: isinstance(data, dict) and "annotations" in data)
    source = f"{tree}/{name}"
    stem = PurePosixPath(name).stem
    folder = tree.below(stem) if any(n.startswith(f"{stem}/") for n in tree.names) else tree
    with naming(source):
        annotations = member(data, "annotations")
    rows = Rows(source, "panoptic")
    segments, pngs = panoptic_segments(annotations, dict.fromkeys(ids), space, (), folder, rows)
    rows.require_sound()
    segments = {ids[key]: found for key, found in segments.items()}
    pngs = {ids[key]: png for key, png in pngs.items()}
    _require_all(pngs, images, source)

    def prediction_of(image_id, size):
        png = pngs[image_id]  # "" without segments
        segmentation = read_map(png) if png else np.zeros(size, np.int32)
        return {"segmentation": segmentation, "segments_info": segments[image_id], "file_name": png}

    return prediction_of


def _instance(tree: Tree, name: str | None, ids: dict, space: LabelSpace, images: list):
    name, data = _json(tree, name, "a list of results", lambda data: isinstance(data, list))
    source = f"{tree}/{name}"
    results = objects(data, source)
    rows = Rows(source, "instance")
    for number, result in enumerate(results):
        with rows.problems.at(f"{source}: result {number}"):
            if not result.get("segmentation"):
                raise ValueError("it has no segmentation (polygons or an RLE)")
            if not is_number(result.get("score")):
                raise ValueError(f"its score is {result.get('score')!r}, not a finite number")
    annotations = [result | {"id": number} for number, result in enumerate(results)]
    segments = instance_segments(annotations, {key: {} for key in ids}, space, rows)
    rows.require_sound()
    segments = {ids[key]: found for key, found in segments.items()}

    def prediction_of(image_id, size):
        found = segments.get(image_id, ())
        with naming(f"{source}: a result of image {image_id!r}"):
            masks = [to_rle(json.loads(segment["shape"]), *size) for segment in found]
        return {
            "masks": masks,
            "labels": torch.tensor([segment["label_id"] for segment in found], dtype=torch.int64),
            "scores": torch.tensor([results[segment["id"]]["score"] for segment in found], dtype=torch.float64),
            "file_name": name,
        }

    return prediction_of


def _semantic(tree: Tree, index: "PredictionIndex | None", ids: dict, space: LabelSpace, images: list, read):
    if index:
        pngs = {ids[image["id"]]: image.get("sem_seg_file_name") for image in index.images}
    else:
        pngs = _pngs_by_name(tree, images)
    _require_all(pngs, images, str(tree))
    known = set(tree.names)
    absent = [png for png in pngs.values() if png not in known]
    if absent:
        raise ValueError(f"{tree}: there is no label image {absent[0]!r}")

    def prediction_of(image_id, size):
        with naming(pngs[image_id]):
            labels = to_labels(read(tree.locate(pngs[image_id])), space)
        return torch.from_numpy(np.where(labels < 0, space.ignore_index, labels))

    return prediction_of


def _pngs_by_name(tree: Tree, images: list) -> dict:
    """{image id: label PNG of this name}. Tools append endings such as "_leftImg8bit" to the names."""
    known = set(images)
    pngs: dict = {}
    for png in (name for name in tree.names if name.lower().endswith(".png")):
        path = PurePosixPath(png).with_suffix("")
        parts = path.name.split("_")
        names = ["_".join(parts[:count]) for count in range(len(parts), 0, -1)]
        full_name = str(path).removeprefix("labels/")  # an id with folders, if file names repeat
        key = next((name for name in (full_name, *names) if name in known), None)
        if key is None:
            raise ValueError(f"{tree}/{png}: the data set has no image {path.name!r}")
        if key in pngs:
            raise ValueError(f"{tree}: {pngs[key]} and {png} are label images of the same image {key!r}; remove one")
        pngs[key] = png
    return pngs


def _json(tree: Tree, name: str | None, what: str, fits) -> tuple[str, object]:
    """Name and contents of the JSON file `name`, or of the only one that fits."""
    candidates = [name] if name else [n for n in tree.names if n.endswith(".json") and not n.startswith("records/")]
    found = []
    for candidate in candidates:
        data = tree.json(candidate)
        if fits(data):
            found.append((candidate, data))
    if len(found) != 1:
        raise ValueError(f"{tree}: {len(found)} JSON files have {what}; exactly one is needed")
    return found[0]


def _require_all(found: dict, images: list, source: str) -> None:
    missing = [image_id for image_id in images if image_id not in found]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ValueError(f"{source}: there is no prediction for image {missing[0]!r}{more}")


class PredictionIndex:
    """`images.json` of `eomt predict`: {"images": [{"id", "file_name"}], "categories": [{"id", "name", "isthing"}]}."""

    def __init__(self, tree: Tree, name: str = "images.json"):
        self.source = f"{tree}/{name}"
        data = tree.json(name)
        with naming(self.source):
            self.images, categories = member(data, "images"), member(data, "categories")
            for image in self.images:
                if not isinstance(image.get("id"), int | str) or not isinstance(image.get("file_name"), str):
                    raise ValueError("an image has no id or no file_name; predict again")
            for category in categories:
                if not is_id(category.get("id")) or not isinstance(category.get("name"), str):
                    raise ValueError("a category has no integer id or no name; predict again")
        categories = sorted(categories, key=lambda category: category["id"])
        ids = tuple(category["id"] for category in categories)
        names = tuple(category["name"] for category in categories)
        stuff = tuple(label for label, category in enumerate(categories) if not category.get("isthing", 1))
        ignored = tuple(VOID_VALUES[size] for size in (2, 3) if VOID_VALUES[size] not in ids)
        self.labels = LabelSpace(self.source, names, stuff, ids, ignored)

    @classmethod
    def find(cls, tree: Tree) -> "PredictionIndex | None":
        return cls(tree) if "images.json" in tree.names else None

    def image_ids(self, dataset) -> dict:
        """{image id of the predictions: image id of the data set}, matched by the ends of their paths."""
        by_name = defaultdict(list)  # {file name: [(path, image id)]} of the data set
        for image_id, file in zip(dataset["image_id"][:], dataset["file_name"][:]):
            by_name[PurePosixPath(file).name].append((PurePosixPath(file).parts, image_id))
        ids: dict = {}
        for image in self.images:
            path = PurePosixPath(image["file_name"].replace("\\", "/"))
            shared = [(_shared_end(parts, path.parts), image_id) for parts, image_id in by_name[path.name]]
            longest = max((length for length, _ in shared), default=0)
            best = [image_id for length, image_id in shared if length == longest and length > 0]
            if len(best) != 1:
                count = "several images" if best else "no image"
                raise ValueError(f"{self.source}: the data set has {count} {image['file_name']!r}")
            ids[image["id"]] = best[0]
        if len(set(ids.values())) < len(self.images):
            raise ValueError(f"{self.source}: two of its images are the same image of the data set")
        return ids

    def space(self, space: LabelSpace) -> LabelSpace:
        """The label space of the data set with the category ids of these predictions.

        Classes are matched by name, or by equal ids if the classes of one side have placeholder names. Raises
        `ValueError` for classes that do not match.
        """
        if self._has_ids_of(space) and (is_unnamed(space.names) or is_unnamed(self.labels.names)):
            return replace(space, ignored_ids=self.labels.ignored_ids)
        return match_labels(self.labels, space, self.source)

    def named(self, space: LabelSpace) -> LabelSpace:
        """The label space of the data set, with the class names of these predictions in place of placeholder names."""
        if is_unnamed(space.names) and self._has_ids_of(space):
            name_of = dict(zip(self.labels.dataset_ids, self.labels.names))
            return replace(space, names=tuple(name_of[i] for i in space.dataset_ids))
        return space

    def _has_ids_of(self, space: LabelSpace) -> bool:
        return set(self.labels.dataset_ids) == set(space.dataset_ids)


def is_unnamed(names) -> bool:
    return all(_UNNAMED.fullmatch(name) for name in names)


def _shared_end(a: tuple[str, ...], b: tuple[str, ...]) -> int:
    """Number of parts of the shorter path if the longer path ends with it, else 0."""
    shorter = min(len(a), len(b))
    return shorter if a[-shorter:] == b[-shorter:] else 0
