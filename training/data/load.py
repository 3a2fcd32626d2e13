"""`load_data`: one split of a data set as a `datasets.Dataset`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from datasets import Dataset
from tqdm.auto import tqdm

from ...configuration.labels import LabelSpace
from .files import IMAGE_SUFFIXES, SPLIT_NAMES
from .hold_out import UNSPLIT, hold_out, named_splits
from .images import read_map
from .readers import READERS, ReadOptions, detect_format
from .row_index import indexed
from .rows import Rows


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
    keep_empty: keep images without any segment. False gives the authors' selection, and their steps an epoch.
    crowds_as_instances: ignore `iscrowd` of COCO instances; CVAT sets it on every mask that it exports.
    score_floor: of what `eomt predict` wrote, segments that score less are not learned.
    automatic_split: where the data names no split, or only train, hold a tenth of it out as "val" (hold_out.py).

    Raises:
        ValueError: with file and id, for malformed annotations; for an empty data set, or a task that the data has no
            ground truth for.
    """
    if not str(path):
        raise ValueError("the path of the data is empty; the current folder is '.'")
    path = Path(path)
    if path.is_file() and path.suffix.lower() in (".json", *IMAGE_SUFFIXES):
        raise ValueError(f"{path} is one file of a data set; give the folder that holds the images and their labels")
    if split not in SPLIT_NAMES:
        raise ValueError(f"there is no split {split!r}; choose from {', '.join(SPLIT_NAMES)}")
    dataset = detect_format(path, task) if dataset == "auto" else dataset
    if dataset not in READERS:
        raise ValueError(f"there is no data set format {dataset!r}; choose from auto, {', '.join(READERS)}")
    reader = READERS[dataset]
    if task not in reader.tasks:
        raise ValueError(f"{path}: {dataset} data has ground truth for {' and '.join(reader.tasks)}, not for {task!r}")
    if dataset not in ("folder", "hub") and (class_names or len(ignore_ids)):
        raise ValueError(
            f"{path}: {dataset} data names its classes itself; class names and ignored ids are for label images "
            "whose values have no names"
        )
    if class_names:
        class_names = dict(class_names if isinstance(class_names, Mapping) else enumerate(class_names))
    names, ignored = class_names or None, tuple(ignore_ids)
    options = ReadOptions(label_space, names, ignored, keep_empty, crowds_as_instances, score_floor)
    if split == "test" and dataset in ("ade20k", "cityscapes"):
        raise ValueError(f"{path}: {dataset} has no ground truth for its test split; choose val")
    held_out = automatic_split and split != "test" and named_splits(path, dataset, task) in UNSPLIT

    def read(path: Path) -> tuple[Dataset, LabelSpace]:
        rows, space = reader.read(path, task, "train" if held_out else split, options)
        table = hold_out(rows.table(), split) if held_out else rows.table()
        if split == "train":
            _require_segments(table, rows)
        if not keep_empty and rows.layout in ("semantic", "semantic_colors", "ade20k_panoptic"):
            table = table.select(_labeled(table))
        return table, space

    if dataset != "coco":  # other formats' rows are paths, or depend on more files than COCO's few json
        return read(path)
    return indexed(path, repr((task, split, held_out, options)), read)


def splits_of(path: str | Path, dataset: str, task: str) -> list[str]:
    """The splits that the data's paths name; those in `UNSPLIT` are what `automatic_split` is for."""
    path = Path(path)
    return named_splits(path, detect_format(path, task) if dataset == "auto" else dataset, task)


def _require_segments(table: Dataset, rows: Rows) -> None:
    """`ValueError` for data that there is nothing to learn from; label images are not read for that."""
    if rows.layout not in ("panoptic", "instance", "panoptic_as_instance"):
        return
    crowds = [segment["iscrowd"] for segments in table["segments"] for segment in segments]
    if not crowds:
        raise ValueError(f"{rows.source}: no image has a segment; training needs some")
    if all(crowds):
        raise ValueError(
            f"{rows.source}: all of its {len(crowds)} segments are crowds (iscrowd 1), which are not learned; "
            "crowds_as_instances takes them as instances (CVAT marks every mask so)"
        )


def _labeled(table: Dataset) -> list[int]:
    """The rows whose label png is not of one value only (the authors' check_empty_targets)."""
    kept = []
    for index, row in enumerate(tqdm(table, desc="images without labels", leave=False)):
        values = read_map(row["annotation"], row["file_name"])  # of colors, too, only whether they differ
        if values.min() != values.max():
            kept.append(index)
    return kept
