"""Predictions as a data set that `eomt train --data` reads: labels for photos that nobody annotated.

What a model is sure of becomes ground truth, what it is less sure of is ignored: instances become crowds, which are not
learned; panoptic segments and semantic pixels become void.

    instance   OUT/train/_annotations.coco.json          and the images beside it
    panoptic   OUT/annotations/panoptic_train2017{.json,/} OUT/train2017/
    semantic   OUT/{images,labels}/train/                 OUT/classes.json or class_dict.csv
"""

import csv
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from ..image_processing.maps import id_to_rgb, rgb_to_id
from ..training.files import atomic, read_json, write_json
from .encoding import VOID_LABELS
from .image_files import require_distinct

NEARLY = 0.5
"""Instances from this share of the score that counts are crowds; below, they are background."""


def write_dataset(output: Path, target: Path, task: str, files: Mapping[str, Path], least: float) -> int:
    """A folder of results → a data set with a training split; the number of its images.

    Args:
        files: the images by the `file_name` that the results give them. They are linked where the file system can.
        least: score from which a segment, or confidence from which a pixel, is ground truth.
    """
    listing = read_json(output / "images.json")
    if task == "semantic":
        require_distinct(listing["images"], ".png")
    with atomic(target, folder=True) as folder:
        WRITERS[task](output, folder, listing, least)
        for image in listing["images"]:
            to = folder / IMAGES[task] / image["file_name"]
            to.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(files[image["file_name"]].resolve(), to)
            except OSError:
                shutil.copyfile(files[image["file_name"]], to)
    return len(listing["images"])


def _numbered(images: list[dict]) -> dict:
    """COCO's readers want integer ids; names are not."""
    return {image["id"]: number for number, image in enumerate(images, 1)}


def _instances(output: Path, folder: Path, listing: dict, least: float) -> None:
    number, annotations = _numbered(listing["images"]), []
    for entry in read_json(output / "instances.json"):
        if entry["score"] >= NEARLY * least:
            entry = {key: entry[key] for key in ("category_id", "segmentation", "bbox", "score", "image_id")}
            entry |= {"id": len(annotations) + 1, "image_id": number[entry["image_id"]]}
            annotations.append(entry | {"iscrowd": int(entry["score"] < least)})
    images = [image | {"id": number[image["id"]]} for image in listing["images"]]
    listed = {"images": images, "categories": listing["categories"], "annotations": annotations}
    write_json(folder / IMAGES["instance"] / "_annotations.coco.json", listed)


def _panoptic(output: Path, folder: Path, listing: dict, least: float) -> None:
    number, annotations = _numbered(listing["images"]), []
    for entry in read_json(output / "panoptic.json")["annotations"]:
        sure = [info for info in entry["segments_info"] if info["score"] >= least]
        png = np.asarray(Image.open(output / "panoptic" / entry["file_name"]))
        kept = np.where(np.isin(rgb_to_id(png), [info["id"] for info in sure])[..., None], png, 0)
        to = folder / "annotations" / "panoptic_train2017" / entry["file_name"]
        to.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(kept.astype(np.uint8)).save(to)
        annotations.append(entry | {"image_id": number[entry["image_id"]], "segments_info": sure})
    images = [image | {"id": number[image["id"]]} for image in listing["images"]]
    listed = {"images": images, "categories": listing["categories"], "annotations": annotations}
    write_json(folder / "annotations" / "panoptic_train2017.json", listed)


def _semantic(output: Path, folder: Path, listing: dict, least: float) -> None:
    color = _unused_color(category["id"] for category in listing["categories"])
    for image in listing["images"]:
        name = image["sem_seg_file_name"].removeprefix("labels/")
        labels = np.asarray(Image.open(output / "labels" / name))
        confidence = np.asarray(Image.open(output / "confidence" / name)) / 65535
        kept = labels.copy()
        kept[confidence < least] = color if labels.ndim == 3 else VOID_LABELS[labels.itemsize]
        to = (folder / "labels" / "train" / image["file_name"]).with_suffix(".png")
        to.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(kept).save(to)
    if max(category["id"] for category in listing["categories"]) <= 65535:
        write_json(folder / "classes.json", {str(c["id"]): c["name"] for c in listing["categories"]})
        return
    with (folder / "class_dict.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("name", "r", "g", "b"))
        for c in listing["categories"]:
            rows.writerow((c["name"], *id_to_rgb(np.array(c["id"])).tolist()))
        rows.writerow(("void", *color))


def _unused_color(ids: Iterable[int]) -> tuple[int, int, int]:
    """White, or the lightest gray that is no class's color."""
    used = set(ids)
    gray = next(value for value in range(255, -1, -1) if value * 0x010101 not in used)
    return gray, gray, gray


WRITERS = {"instance": _instances, "panoptic": _panoptic, "semantic": _semantic}
IMAGES = {"instance": "train", "panoptic": "train2017", "semantic": "images/train"}
