"""Tiny data of each task, and the command that trains on it."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from eomt.cli import main
from eomt.training.data.shapes import make_shapes
from tests.training.tiny import TINY_RUN, overridden

SIZE = (48, 64)
TINY = (
    f"{TINY_RUN} --backbone vit_small_patch14_reg4_dinov2 --backbone-weights scratch --image-size 64 "
    "--total-batch-size 2 --max-steps 4 --use-cpu --logging-steps 1 --learning-rate 1e-3"
)
OPTIONS = {  # of the shared run of each task
    "panoptic": "--save-steps 2 --adam-beta2 0.9 --full-determinism false",
    "semantic": "--class-names void,sky,road,car --ignore-ids 0 --image-size 48x64 --masking always --llrd 0.9 "
    "--evaluate-blocks --max-steps -1 --num-train-epochs 1.5",
    "instance": "--max-steps 1 --eval-strategy no",
}


def train(data: Path, output: Path, task: str, *options: str) -> int:
    command = overridden(TINY, options)
    return main(["train", "--data", str(data), "--output", str(output), "--task", task, *command])


def write_data(root: Path) -> None:
    make_shapes(root / "panoptic", train=4, val=2)
    label_maps(root / "semantic")
    roboflow(root / "instance")


def label_maps(root: Path) -> None:
    """Write label PNGs with the values 1 … 3 and 255, without names. 3 is not in the validation split."""
    rng = np.random.default_rng(0)
    for split, values, count in (("train", (1, 2, 3, 255), 3), ("val", (1, 2, 2, 255), 2)):
        for kind in ("images", "labels"):
            (root / split / kind).mkdir(parents=True)
        for i in range(count):
            labels = np.repeat(np.array(values, np.uint8), 16)[None].repeat(SIZE[0], 0)
            Image.fromarray(labels).save(root / split / "labels" / f"{i}.png")
            Image.fromarray(rng.integers(0, 255, (*SIZE, 3), np.uint8)).save(root / split / "images" / f"{i}.jpg")


def roboflow(root: Path) -> None:
    """Write an export of Roboflow: category 0 is the data set, image ids are counted, names have a hash."""
    rng = np.random.default_rng(1)
    names = ("cells", "red", "white")
    categories = [{"id": number, "name": name, "supercategory": "cells"} for number, name in enumerate(names)]
    for split in ("train", "valid"):
        images, annotations = [], []
        (root / split).mkdir(parents=True)
        for i, stem in enumerate(("b_jpg.rf.07", "a_jpg.rf.5c")):
            Image.fromarray(rng.integers(0, 255, (*SIZE, 3), np.uint8)).save(root / split / f"{stem}.jpg")
            images.append({"id": i, "license": 1, "file_name": f"{stem}.jpg", "height": SIZE[0], "width": SIZE[1]})
            for k, x in enumerate((4, 36)):
                y = 8 + 4 * i
                polygon = [x, y, x + 20, y, x + 20, y + 20, x, y + 20]
                place = {"bbox": [x, y, 20, 20], "area": 400, "iscrowd": 0, "segmentation": [polygon]}
                annotations.append({"id": 2 * i + k, "image_id": i, "category_id": 1 + k, **place})
        data = {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}
        (root / split / "_annotations.coco.json").write_text(json.dumps(data))
