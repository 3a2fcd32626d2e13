"""`load_data`: one split of a data set as a `datasets.Dataset`: format → reader → rows → held out → not empty."""

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
    """How a format is recognized and read."""

    matches: Callable[[Tree, str], bool]
    "(files, task) → whether the data has this format."
    read: Callable[[Path, str, str, ReadOptions], tuple[Rows, LabelSpace]]
    "(path, task, split, options) → rows and classes."
    tasks: tuple[str, ...]
    "Those that the format has ground truth for."
    splits: Callable[[Path, str], list[str]] = lambda path, task: ["train", "val"]
    "(path, task) → the splits that the data names."


FORMATS = {  # in the order of recognition
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
"""Their segments are known when the pngs are read."""
UNSPLIT = ([], ["train"])
"""Splits named by data that has none for validation."""
SHARE, FEWEST = 0.1, 5  # of the images are held out; of fewer than five none are


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
    """One split of a data set and its classes; see this package's docstring for the columns.

    label_space: the classes wanted (a model's); the data's are matched to them by name. Default: the data's own.
    class_names, ignore_ids: for a folder of label pngs, what the values are called and which mean "unlabeled" (255
        always); an error for other data, which says so itself.
    keep_empty: keep images without any segment. False: the authors' selection, and their steps an epoch.
    crowds_as_instances: ignore `iscrowd` of COCO instances; CVAT sets it on every mask that it exports.
    score_floor: of what `eomt predict` wrote, segments that score less are not learned.
    automatic_split: where the data names no split, or only train, hold a tenth of it out as "val" (`hold_out`).

    Raises:
        ValueError: with file and id, for malformed annotations; for an empty data set, or a task that the data has no
            ground truth for.
    """
    if not str(path):
        raise ValueError("the path of the data is empty; the current folder is '.'")
    path = Path(path)
    if path.is_file() and path.suffix.lower() != ".zip":
        raise ValueError(f"{path} is one file of a data set; give the folder that holds the images and their labels")
    dataset = detect_format(path, task) if dataset == "auto" else dataset
    if dataset not in FORMATS:
        raise ValueError(f"there is no data set format {dataset!r}; choose from auto, {', '.join(FORMATS)}")
    format = FORMATS[dataset]
    if task not in format.tasks:
        raise ValueError(f"{path}: {dataset} data has ground truth for {' and '.join(format.tasks)}, not for {task!r}")
    if dataset not in ("folder", "hub") and (class_names or len(ignore_ids)):
        raise ValueError(
            f"{path}: {dataset} data names its classes itself; class names and ignored ids are for label images "
            "whose values have no names"
        )
    if split == "test" and dataset in ("ade20k", "cityscapes"):
        raise ValueError(f"{path}: {dataset} has no ground truth for its test split; choose val")
    names = dict(class_names if isinstance(class_names, Mapping) else enumerate(class_names or ()))
    options = ReadOptions(label_space, names or None, tuple(ignore_ids), keep_empty, crowds_as_instances, score_floor)
    held_out = automatic_split and split != "test" and splits_of(path, dataset, task) in UNSPLIT
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
    return table, space


def detect_format(path: Path, task: str) -> str:
    """The format of the data at a path, by the names of its files."""
    tree = Tree(path)
    return next(name for name, format in FORMATS.items() if format.matches(tree, task))


def tasks_of(path: str | Path, dataset: str = "auto") -> list[str]:
    """The tasks that the data has ground truth of its own for, by the names of its files."""
    path, found = Path(path), []
    for task in TASKS:
        name = detect_format(path, task) if dataset == "auto" else dataset
        if name == "coco":
            there = has_annotations(path, task)
        elif name == "folder":
            there = has_label_images(Tree(path))
        else:
            there = task in FORMATS[name].tasks
        if there:
            found.append(task)
    return found


def splits_of(path: str | Path, dataset: str, task: str) -> list[str]:
    """The splits that the data's paths name; those in `UNSPLIT` are what `automatic_split` is for."""
    path = Path(path)
    dataset = detect_format(path, task) if dataset == "auto" else dataset
    own_name = path.stem.rstrip("0123456789").lower()  # the folder itself may be called "val", but not "my-test"
    named = FORMATS[dataset].splits(path, task)
    return named or [split for split, words in SPLIT_NAMES.items() if own_name in words]


def hold_out(table: Dataset, split: str) -> Dataset:
    """A split's rows of data that has no split for validation: "val" is whose name has a low hash, about a tenth.

    At least one image, at most a fifth; fewer than five images are not split: both are all of them. The choice needs no
    file: every command makes the same one, and images that are added later do not change it.
    """
    if len(table) < FEWEST:
        return table
    hashes = [sha256(f"0:{name}".encode()).digest() for name in table["file_name"][:]]
    lowest = sorted(hashes)[: len(hashes) // 5]  # of few images, many hashes may be low by chance
    limit = max(lowest[0], min(lowest[-1], round(SHARE * 256).to_bytes()))
    return table.select([i for i, value in enumerate(hashes) if (value <= limit) == (split == "val")])


def _labeled(table: Dataset) -> list[int]:
    """The rows whose label png is not of one value only (the authors' check_empty_targets)."""
    kept = []
    for index, row in enumerate(tqdm(table, desc="images without labels", leave=False)):
        with naming(row["file_name"]):
            values = read_map(row["annotation"])  # of colors, too, only whether they differ
        if values.min() != values.max():
            kept.append(index)
    return kept
