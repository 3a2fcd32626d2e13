"""Predictions of any tool, read from files in the formats of the official servers.

    panoptic   `panoptic.json` {"annotations": [{"image_id", "file_name", "segments_info": [{"id", "category_id"}]}]}
               and `panoptic/*.png`, id = R + 256 G + 65536 B, 0 void; COCO, ADE20K panoptic
    instance   `instances.json` [{"image_id", "category_id", "segmentation": RLE, "score"}]; COCO
    semantic   `*.png`, one channel; Cityscapes label ids, ADE20K 1 … 150

Ids are the data set's own everywhere (`LabelSpace.dataset_ids`), as any tool writes them for these servers. Where
`images.json` lies beside them, `inference.prediction_files` wrote them, and they fit by names (prediction_index.py).
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from ...configuration.labels import LabelSpace
from .decode import to_labels
from .files import Tree, safe_name
from .images import read_classes, read_map
from .polygons import check_shape, to_rle
from .prediction_index import PredictionIndex
from .rows import is_id, is_number


def read_predictions(path: str | Path, task: str, label_space: LabelSpace, dataset) -> Iterator[tuple[dict, object]]:
    """(sample, prediction) of every image of a data set with `EvaluationTransform`.

    path: a folder with files as above, or the json. `ValueError` naming file and id: an image without a prediction (but
    for instances, where nothing may be found), a prediction without its image, a category that is none, a repeated id.
    """
    tree = predictions_folder(path)
    name = None if Path(path).is_dir() else Path(path).name
    plain = dataset.with_format(None)
    images = plain["image_id"][:]
    index = PredictionIndex.find(tree)
    ids = index.image_ids(plain) if index else dict(zip(images, images))
    space = index.space(label_space) if index else label_space
    if task == "semantic":
        pngs = _indexed_pngs(tree, index, ids) if index else _label_pngs(tree, images)
        _complete(pngs, images, str(tree))
        prediction_for = _semantic(tree, pngs, space, plain[0]["layout"] == "semantic_colors")
    else:
        prediction_for = {"panoptic": _panoptic, "instance": _instance}[task](tree, name, space, images, ids)
    for position, image_id in enumerate(images):
        sample = dataset[position]
        yield sample, prediction_for(image_id, tuple(sample["image"].shape[1:]))


def predictions_folder(path: str | Path) -> Tree:
    """The folder of predictions, or that of a json."""
    return Tree(Path(path) if Path(path).is_dir() else Path(path).parent)


def _panoptic(tree: Tree, name: str | None, space: LabelSpace, images: list, ids: dict):
    name, data = _json(tree, name, "annotations", lambda d: isinstance(d, dict) and "annotations" in d)
    source = f"{tree}/{name}"
    stem = PurePosixPath(name).stem
    folder = tree.below(stem) if any(n.startswith(f"{stem}/") for n in tree.names) else tree
    entries = _by_image(data["annotations"], images, ids, source)

    def prediction_for(image_id, size):
        entry, where = entries[image_id], f"{source}: image {image_id}"
        png = safe_name(entry.get("file_name") or "", where)
        if png not in folder.names:
            raise ValueError(f"{where}: its png {png!r} is not below {folder}")
        segments = _objects(entry.get("segments_info"), f"{where}: segments_info")
        wrong = [s.get("id") for s in segments if not is_id(s.get("id"))]
        if wrong:
            raise ValueError(f"{where}: segment id {wrong[0]!r} is not an integer")
        info = [{"id": s["id"], "label_id": _label(s, space, where)} for s in segments]
        return {"segmentation": read_map(folder.locate(png), png), "segments_info": info, "file_name": png}

    return prediction_for


def _instance(tree: Tree, name: str | None, space: LabelSpace, images: list, ids: dict):
    name, data = _json(tree, name, "a list of results", lambda d: isinstance(d, list))
    source = f"{tree}/{name}"
    found: dict = {image_id: [] for image_id in images}
    for number, entry in enumerate(_objects(data, source)):
        where = f"{source}: result {number}"
        if not isinstance(entry.get("image_id"), int | str) or entry["image_id"] not in ids:
            raise ValueError(f"{where}: the data set has no image with id {entry.get('image_id')!r}")
        if fault := check_shape(entry.get("segmentation"), (None, None)):
            raise ValueError(f"{where}: {fault}")
        if not is_number(entry.get("score")):
            raise ValueError(f"{where}: its score is {entry.get('score')!r}, not a finite number")
        found[ids[entry["image_id"]]].append(
            (_label(entry, space, where), float(entry["score"]), entry["segmentation"])
        )

    def prediction_for(image_id, size):
        labels, scores, shapes = zip(*found[image_id]) if found[image_id] else ((), (), ())
        try:
            masks = [to_rle(shape, *size) for shape in shapes]
        except ValueError as error:
            raise ValueError(f"{source}: a result of image {image_id!r}: {error}") from None
        return {
            "masks": masks,
            "labels": torch.tensor(labels, dtype=torch.int64),
            "scores": torch.tensor(scores, dtype=torch.float64),
            "file_name": name,
        }

    return prediction_for


def _indexed_pngs(tree: Tree, index: PredictionIndex, ids: dict) -> dict:
    """The data set's image id → label png, as `images.json` says."""
    pngs = {ids[entry["id"]]: entry.get("sem_seg_file_name") for entry in index.images}
    absent = next((png for png in pngs.values() if png not in tree.names), "")
    if absent != "":
        raise ValueError(f"{index.source}: its label image {absent!r} is not below {tree}")
    return pngs


def _label_pngs(tree: Tree, images: list) -> dict:
    """The data set's image id → label png of that name."""
    known, pngs = set(images), {}
    for png in (n for n in tree.names if n.lower().endswith(".png")):
        path = PurePosixPath(png).with_suffix("")
        full_name = "/".join(path.parts[path.parts[0] == "labels" :])  # images of one name in several folders
        key = next((k for k in (full_name, *_prefixes(path.name)) if k in known), None)
        if key is None:
            raise ValueError(f"{tree}/{png}: the data set has no image {path.name!r}")
        if key in pngs:
            raise ValueError(f"{tree}: two label images for image {key!r}: {pngs[key]} and {png}")
        pngs[key] = png
    return pngs


def _semantic(tree: Tree, pngs: dict, space: LabelSpace, colors: bool):
    def prediction_for(image_id, size):
        png = pngs[image_id]
        labels = to_labels(read_classes(tree.locate(png), png, colors), space, png)
        return torch.from_numpy(np.where(labels < 0, space.ignore_index, labels))

    return prediction_for


def _prefixes(stem: str) -> Iterator[str]:
    """The stem, then with its last "_…" parts left out: tools add such as "_leftImg8bit"."""
    while stem:
        yield stem
        stem = stem.rpartition("_")[0]


def _json(tree: Tree, name: str | None, what: str, fits) -> tuple[str, object]:
    """The one json of this kind in a folder, or the one named."""
    found = []
    candidates = [n for n in tree.names if n.endswith(".json") and not n.startswith("records/")]
    for candidate in [name] if name else candidates:
        data = tree.json(candidate)
        if fits(data):
            found.append((candidate, data))
    if len(found) != 1:
        raise ValueError(f"{tree}: {len(found)} json files with {what}; one is needed")
    return found[0]


def _by_image(entries: list[dict], images: list, ids: dict, source: str) -> dict:
    by_image: dict = {}
    for entry in _objects(entries, f"{source}: annotations"):
        key = entry.get("image_id")
        if not isinstance(key, int | str) or key not in ids:
            raise ValueError(f"{source}: the data set has no image with id {key!r} ({entry.get('file_name')})")
        if ids[key] in by_image:
            raise ValueError(f"{source}: image id {key} has two annotations")
        by_image[ids[key]] = entry
    _complete(by_image, images, source)
    return by_image


def _complete(found: dict, images: list, source: str) -> None:
    missing = [image_id for image_id in images if image_id not in found]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ValueError(f"{source}: there is no prediction for image {missing[0]!r}{more}")


def _label(entry: dict, space: LabelSpace, where: str) -> int:
    category = entry.get("category_id")
    if not is_id(category) or category not in space.dataset_id_to_label:
        raise ValueError(f"{where}: category {category!r} (segment {entry.get('id')}) is not among the data set's")
    return space.dataset_id_to_label[category]


def _objects(entries, what: str) -> list[dict]:
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{what} is not a list of objects")
    return entries
