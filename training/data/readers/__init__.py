"""One reader a format, all with one signature: `read(path, task, split, options) → (rows, label space)`."""

from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ..files import Tree
from .ade20k import is_ade20k, read_ade20k
from .cityscapes import is_cityscapes, read_cityscapes
from .coco import has_annotations, read_coco
from .folder import has_label_images, read_folder
from .hub import is_hub, read_hub
from .options import ReadOptions, UnknownClass
from .predicted import is_predicted, read_predicted
from .voc import is_voc, read_voc
from .yolo import is_yolo, read_yolo

__all__ = ["READERS", "ReadOptions", "Reader", "UnknownClass", "detect_format"]


class Reader(NamedTuple):
    read: Callable
    tasks: tuple[str, ...]
    "Those that the format has ground truth for."


READERS = {
    "coco": Reader(read_coco, ("panoptic", "instance", "semantic")),
    "ade20k": Reader(read_ade20k, ("panoptic", "semantic")),
    "cityscapes": Reader(read_cityscapes, ("semantic",)),
    "yolo": Reader(read_yolo, ("instance",)),
    "voc": Reader(read_voc, ("semantic",)),
    "hub": Reader(read_hub, ("semantic",)),
    "folder": Reader(read_folder, ("semantic",)),
    "predicted": Reader(read_predicted, ("panoptic", "instance", "semantic")),
}


def detect_format(path: Path, task: str) -> str:
    """The format of the data at a path, by the names of its files."""
    if is_hub(path):
        return "hub"
    tree = Tree(path)
    if is_cityscapes(path):
        return "cityscapes"
    if is_ade20k(path):
        return "ade20k"
    if is_predicted(tree):
        return "predicted"
    if task == "semantic":
        if is_voc(tree):
            return "voc"
        names = (PurePosixPath(name).name for name in tree.names)
        if any(name.startswith("panoptic_") and name.endswith(".json") for name in names):
            return "coco"
        return "coco" if has_annotations(tree) and not has_label_images(tree) else "folder"
    if task == "instance" and is_yolo(tree):
        return "yolo"
    return "coco"
