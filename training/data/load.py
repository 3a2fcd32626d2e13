"""`load_data`: which reader a path needs, and its rows as a `datasets.Dataset`."""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from datasets import Dataset
from tqdm.auto import tqdm

from ...configuration.labels import LabelSpace
from ...configuration.labels import label_space as packaged
from .ade20k import is_ade20k, read_ade20k
from .cityscapes import is_cityscapes, read_cityscapes
from .coco import read_coco
from .files import Tree, read_map
from .folder import is_yolo, read_semantic, read_yolo
from .hold_out import has_train_only, hold_out
from .rows import Rows, check_names

DATASETS = {  # name → the tasks it has truth for
    "coco": ("panoptic", "instance"),
    "ade20k": ("panoptic", "semantic"),
    "cityscapes": ("semantic",),
    "yolo": ("instance",),
    "folder": ("semantic",),
}


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
) -> tuple[Dataset, LabelSpace]:
    """One split of a data set and its classes; see this package's docstring for the columns.

    label_space: the classes wanted (a model's); the data's are matched to them by name. Default: the data's own.
    class_names, ignore_ids: for a folder of label pngs, what the values are called and which mean "unlabelled" (255
        always); an error for other data, which says so itself.
    keep_empty: keep images without any segment. False gives the authors' selection, and their steps an epoch.
    automatic_split: where the data has a train split only, hold a tenth of it out as "val" (hold_out.py).
    `ValueError`: the file and id of malformed annotations, an empty data set, a task the data has no truth for.
    """
    path = Path(path)
    if split not in ("train", "val"):
        raise ValueError(f"there is no split {split!r}; choose train or val")
    dataset = detect(path, task) if dataset == "auto" else dataset
    if dataset not in DATASETS:
        raise ValueError(f"there is no data set format {dataset!r}; choose from auto, {', '.join(DATASETS)}")
    if task not in DATASETS[dataset]:
        raise ValueError(f"{path}: {dataset} data has truth for {' and '.join(DATASETS[dataset])}, not for {task!r}")
    if dataset != "folder" and (class_names or len(ignore_ids)):
        raise ValueError(
            f"{path}: {dataset} data names its classes itself; class names and ignored ids are for folders of pngs"
        )
    held_out = automatic_split and has_train_only(path, dataset, task)
    stored = "train" if held_out else split
    rows, space = _read(path, dataset, task, stored, label_space, class_names, tuple(ignore_ids), keep_empty)
    table = hold_out(rows.table(), split, str(path)) if held_out else rows.table()
    if not keep_empty and rows.layout in ("semantic", "semantic_colors", "ade20k_panoptic"):
        table = table.select(_labelled(table))
    return table, space


def is_split_here(path: str | Path, dataset: str, task: str) -> bool:
    """Whether `automatic_split` has something to do."""
    path = Path(path)
    return has_train_only(path, detect(path, task) if dataset == "auto" else dataset, task)


def detect(path: Path, task: str) -> str:
    """The format of the data at a path, by the names of its files."""
    tree = Tree(path)
    if is_cityscapes(path):
        return "cityscapes"
    if is_ade20k(path):
        return "ade20k"
    if task == "semantic":
        names = (PurePosixPath(name).name for name in tree.names)
        return "coco" if any(name.startswith("panoptic_") and name.endswith(".json") for name in names) else "folder"
    if task == "instance" and is_yolo(tree):
        return "yolo"
    return "coco"


def _read(path, dataset, task, split, wanted, class_names, ignore_ids, keep_empty) -> tuple[Rows, LabelSpace]:
    def space_of(space: LabelSpace) -> LabelSpace:
        return space if wanted is None else check_names(space, wanted, str(path))

    if dataset == "coco":
        return read_coco(path, task, split, space_of, keep_empty)
    if dataset == "yolo":
        return read_yolo(path, split, space_of, keep_empty)
    if dataset == "cityscapes":
        return read_cityscapes(path, split), space_of(packaged("cityscapes_semantic"))
    if dataset == "ade20k":
        space = packaged(f"ade20k_{task}")
        return read_ade20k(path, task, split), space_of(space)
    names = dict(class_names if isinstance(class_names, Mapping) else enumerate(class_names)) if class_names else None
    default = wanted.dataset_id_to_label if wanted is not None and wanted.knows_dataset_ids else {}
    default = {i: wanted.names[label] for i, label in default.items() if i >= 0} or None
    rows, space = read_semantic(path, split, ignore_ids, names, default)
    return rows, space_of(space)


def _labelled(table: Dataset) -> list[int]:
    """The rows whose label png is not of one value only (the authors' check_empty_targets)."""
    kept = []
    for index, row in enumerate(tqdm(table, desc="images without labels", leave=False)):
        values = read_map(row["annotation"], row["file_name"])  # of colors, too, only whether they differ
        if values.min() != values.max():
            kept.append(index)
    return kept
