"""The folder for the code of the pages: small models, data and photos under all names that they use."""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as rle

from eomt import EoMTForUniversalSegmentation, EoMTImageProcessor
from eomt.modeling_eomt import convert_to_authors

CHECKPOINTS = {  # name on the hub: task of the demo's model there
    "tue-mps/coco_panoptic_eomt_large_640": "panoptic",
    "tue-mps/coco_instance_eomt_large_640": "instance",
    "tue-mps/cityscapes_semantic_eomt_large_1024": "semantic",
}
RUNS = {"runs/shapes": "panoptic", "runs/cells": "instance", "runs/streets": "semantic"}


def build(folder: Path, demo: Path) -> Path:
    """Write models of every task, data of every format and photos below `folder`, from the output of the demo."""
    shutil.copytree(demo, folder / "runs/demo")
    shapes = folder / "data/shapes"
    shutil.copytree(demo / "data", shapes)
    cells(shapes, folder / "data/cells")
    streets(shapes, folder / "data/streets")
    names = [c["name"] for c in json.loads((shapes / "annotations/panoptic_val.json").read_text())["categories"]]
    (folder / "names.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    for name, task in (CHECKPOINTS | RUNS).items():
        save(demo / "model", folder / name, task)
    model = EoMTForUniversalSegmentation.from_pretrained(demo / "model")
    torch.save(convert_to_authors(model), folder / "pytorch_model.bin")
    (folder / "photos").mkdir()
    for number, png in enumerate(sorted((shapes / "val").glob("*.png"))[:2]):
        Image.open(png).convert("RGB").save(folder / f"photos/{number}.jpg")
    shutil.copy(folder / "photos/0.jpg", folder / "photo.jpg")
    return folder


def save(source: Path, target: Path, task: str) -> None:
    """Save the demo's model and a processor for another task."""
    model = EoMTForUniversalSegmentation.from_pretrained(source)
    model.config.task = task
    model.config.stuff_label_ids = model.config.stuff_label_ids if task == "panoptic" else []
    model.save_pretrained(target)
    EoMTImageProcessor(task=task, size=64, stuff_label_ids=model.config.stuff_label_ids).save_pretrained(target)


def _segments(shapes: Path, split: str):
    """Entry, id map (H, W), segments and categories of each image of a panoptic data set."""
    data = json.loads((shapes / f"annotations/panoptic_{split}.json").read_text())
    images = {image["id"]: image for image in data["images"]}
    for annotation in data["annotations"]:
        png = np.asarray(Image.open(shapes / f"annotations/panoptic_{split}" / annotation["file_name"]), np.int64)
        yield images[annotation["image_id"]], png @ [1, 256, 65536], annotation["segments_info"], data["categories"]


def cells(shapes: Path, target: Path) -> None:
    """Write COCO instances in the layout of Roboflow."""
    for split, folder in (("train", "train"), ("val", "valid")):
        images, annotations = [], []
        content = {"images": images, "annotations": annotations}
        (target / folder).mkdir(parents=True)
        for image, ids, segments, categories in _segments(shapes, split):
            content["categories"] = categories
            shutil.copy(shapes / split / image["file_name"], target / folder / image["file_name"])
            images.append(image)
            for segment in segments:
                mask = rle.encode(np.asfortranarray(ids == segment["id"]))
                entry = {"id": len(annotations) + 1, "image_id": image["id"], "category_id": segment["category_id"]}
                entry |= {"bbox": rle.toBbox(mask).tolist(), "area": int(rle.area(mask)), "iscrowd": 0}
                annotations.append(entry | {"segmentation": mask | {"counts": mask["counts"].decode()}})
        (target / folder / "_annotations.coco.json").write_text(json.dumps(content))


def streets(shapes: Path, target: Path) -> None:
    """Write images, label PNGs and the names of their values."""
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (target / split / kind).mkdir(parents=True)
        for image, ids, segments, categories in _segments(shapes, split):
            labels = np.full(ids.shape, 255, np.uint8)
            for segment in segments:
                labels[ids == segment["id"]] = segment["category_id"] - 1
            name = Path(image["file_name"])
            shutil.copy(shapes / split / name, target / split / "images" / name)
            Image.fromarray(labels).save(target / split / "labels" / name.with_suffix(".png"))
            (target / "classes.txt").write_text("\n".join(c["name"] for c in categories) + "\n", encoding="utf-8")
