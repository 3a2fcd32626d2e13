"""`load_data`: detect the format of a data set, read one split, hold out images for validation, drop empty images."""

from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from datasets import Dataset
from tqdm.auto import tqdm

from ...configuration.labels import LabelSpace
from ...configuration.tasks import TASKS
from .ade20k import is_ade20k, read_ade20k
from .cityscapes import is_cityscapes, read_cityscapes
from .coco import coco_splits, has_annotations, is_coco, read_coco
from .files import SPLIT_NAMES, Tree, naming
from .folders import folder_splits, has_label_images, is_folder, read_folder
from .hub import hub_splits, is_hub, read_hub
from .images import read_map
from .predicted import is_predicted, read_predicted
from .row_cache import cached_coco, is_large
from .rows import ReadOptions, Rows
from .voc import is_voc, read_voc, voc_splits
from .yolo import is_yolo, read_yolo


class Format(NamedTuple):
    """Detection and reader of one format."""

    matches: Callable[[Tree, str], bool]
    "(files, task) → whether the data has this format"
    read: Callable[[Path, str, str, ReadOptions], tuple[Rows, LabelSpace]]
    "(path, task, split, options) → rows and label space"
    tasks: tuple[str, ...]
    "tasks with ground truth in this format"
    splits: Callable[[Path, str], list[str]] = lambda path, task: ["train", "val"]
    "(path, task) → splits named by the data"


FORMATS = {  # in the order of detection
    "hub": Format(is_hub, read_hub, ("semantic",), hub_splits),
    "cityscapes": Format(is_cityscapes, read_cityscapes, ("semantic",)),
    "ade20k": Format(is_ade20k, read_ade20k, ("panoptic", "semantic")),
    "predicted": Format(is_predicted, read_predicted, ("panoptic", "instance", "semantic")),
    "voc": Format(is_voc, read_voc, ("instance", "semantic"), voc_splits),
    "yolo": Format(is_yolo, read_yolo, ("instance",), folder_splits),
    "coco": Format(is_coco, read_coco, ("panoptic", "instance", "semantic"), coco_splits),
    "folder": Format(is_folder, read_folder, ("semantic",), folder_splits),
}
PNG_LAYOUTS = ("semantic", "semantic_colors", "ade20k_panoptic", "voc_instance", "voc_instance_colors")
"""Layouts with segments that are known only after reading the PNG."""
UNSPLIT = ([], ["train"])
"""Values of `splits_of` for data without a validation split."""
HELD_OUT_SHARE = 0.1
MIN_IMAGES_TO_SPLIT = 5


def load_data(
    path: str | Path,
    dataset: str = "auto",
    *,
    task: str,
    split: str = "train",
    label_space: LabelSpace | None = None,
    class_names: Mapping[int, str] | Sequence[str] | None = None,
    ignore_ids: Sequence[int] = (),
    keep_empty: bool = True,
    automatic_split: bool = False,
    crowds_as_instances: bool = False,
    score_floor: float = 0.0,
) -> tuple[Dataset, LabelSpace]:
    """One split of a data set, with the columns of the package docstring, and its label space.

    Args:
        path: folder or zip of the data; with `dataset="hub"` also a name on the Hub.
        dataset: format, a key of `FORMATS`; "auto" detects it.
        task: "panoptic", "instance" or "semantic".
        split: "train", "val" or "test".
        label_space: label space of a model, matched to the data by class name. None: the label space of the data.
        class_names: names of the pixel values of label images, for data without fixed classes; others raise.
        ignore_ids: pixel values of unlabeled pixels in label images, for such data. 255 is always one, except in masks
            of 0 and 255.
        keep_empty: keep images without segments. False: the authors' selection, and their number of steps per epoch.
        automatic_split: hold out a tenth of the images as "val" if the data has no validation split (`hold_out`).
        crowds_as_instances: ignore `iscrowd` of COCO instances. CVAT sets it on every mask.
        score_floor: minimum score of the segments to learn in predictions of `eomt predict`.

    Raises:
        ValueError: for malformed annotations, with file and id; for an empty data set; for a task without ground truth.
    """
    if not str(path):
        raise ValueError("the path of the data is empty; the current folder is '.'")
    path = Path(path)
    if path.is_file() and path.suffix.lower() != ".zip":
        raise ValueError(f"{path} is a single file; give the folder of the images and their annotations")
    dataset = detect_format(path, task) if dataset == "auto" else dataset
    if dataset not in FORMATS:
        raise ValueError(f"there is no data set format {dataset!r}; choose from auto, {', '.join(FORMATS)}")
    format = FORMATS[dataset]
    if task not in format.tasks:
        raise ValueError(f"{path}: {dataset} data has ground truth for {' and '.join(format.tasks)}, not for {task!r}")
    if dataset not in ("folder", "hub") and (class_names or len(ignore_ids)):
        raise ValueError(
            f"{path}: {dataset} data has class names of its own; class names and ignored ids are options for folders "
            "of label images only"
        )
    if split == "test" and dataset in ("ade20k", "cityscapes"):
        raise ValueError(f"{path}: {dataset} has no ground truth for its test split; choose val")
    names = dict(class_names if isinstance(class_names, Mapping) else enumerate(class_names or ()))
    held_out = automatic_split and split != "test" and splits_of(path, dataset, task) in UNSPLIT
    read_empty = keep_empty or held_out  # the held-out images do not depend on `keep_empty`
    options = ReadOptions(label_space, names or None, tuple(ignore_ids), read_empty, crowds_as_instances, score_floor)
    read_split = "train" if held_out else split
    if dataset == "coco" and is_large(path):
        table, space = cached_coco(path, task, read_split, options)
    else:
        rows, space = format.read(path, task, read_split, options)
        rows.check(read_split)
        table = rows.table()
    if held_out:
        table = hold_out(table, split)
    if not keep_empty and table[0]["layout"] in PNG_LAYOUTS:
        table = table.select(_labeled(table))
    elif not keep_empty and held_out:
        table = table.select([index for index, segments in enumerate(table["segments"][:]) if segments])
    if not len(table):
        raise ValueError(f"{path}: no image of the split {split!r} has a segment")
    return table, space


def detect_format(path: Path, task: str) -> str:
    """The format of a data set: the first match in `FORMATS`."""
    tree = Tree(path)
    return next(name for name, format in FORMATS.items() if format.matches(tree, task))


def tasks_of(path: str | Path, dataset: str = "auto") -> list[str]:
    """The tasks with ground truth in a data set, detected by file names and annotation files."""
    path = Path(path)
    found = []
    for task in TASKS:
        name = detect_format(path, task) if dataset == "auto" else dataset
        if name == "coco":
            has_ground_truth = has_annotations(path, task)
        elif name == "folder":
            has_ground_truth = has_label_images(Tree(path))
        else:
            has_ground_truth = task in FORMATS[name].tasks
        if has_ground_truth:
            found.append(task)
    return found


def splits_of(path: str | Path, dataset: str, task: str) -> list[str]:
    """The splits named by the data, or by the folder itself. `automatic_split` applies to those in `UNSPLIT`."""
    path = Path(path)
    dataset = detect_format(path, task) if dataset == "auto" else dataset
    named = FORMATS[dataset].splits(path, task)
    own_name = path.stem.rstrip("0123456789").lower()  # "val" and "val2017" name a split, "my-test" does not
    return named or [split for split, words in SPLIT_NAMES.items() if own_name in words]


def hold_out(table: Dataset, split: str) -> Dataset:
    """The rows of "train" or "val" for data without a validation split.

    "val" are the images with a low hash of their file name: about a tenth, at least one and at most a fifth. Fewer than
    five images are not split: both splits are all of them. The split needs no file: it is the same in every command,
    and images that are added to many others later do not change it.
    """
    if len(table) < MIN_IMAGES_TO_SPLIT:
        return table
    hashes = [sha256(f"0:{name}".encode()).digest() for name in table["file_name"][:]]
    lowest = sorted(hashes)[: len(hashes) // 5]  # of few images, many hashes may be low by chance
    limit = max(lowest[0], min(lowest[-1], round(HELD_OUT_SHARE * 256).to_bytes()))
    return table.select([i for i, value in enumerate(hashes) if (value <= limit) == (split == "val")])


def _labeled(table: Dataset) -> list[int]:
    """Indices of the rows with more than one value in the label PNG (`check_empty_targets` in the authors' code)."""
    kept = []
    for index, row in enumerate(tqdm(table, desc="images without labels", leave=False)):
        with naming(row["file_name"]):
            values = read_map(row["annotation"])  # also for colors: only their difference matters
        if values.min() != values.max():
            kept.append(index)
    return kept
