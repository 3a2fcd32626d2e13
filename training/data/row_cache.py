"""Cached rows of a large COCO data set: an Arrow file that all processes and workers map into memory.

Reading 0.5 GB of JSON takes a minute and several GB of memory. `Dataset.from_generator` does it once, in one process,
and caches the rows in `HF_DATASETS_CACHE`. The arguments of the generator are the key of the cache.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import datasets
from datasets import Dataset, Value
from datasets.exceptions import DatasetGenerationError

from ...configuration.labels import LabelSpace
from .coco import read_coco
from .files import files_below
from .rows import ReadOptions, features

MIN_BYTES = 1 << 25  # of annotation files: smaller ones are read in a second or two
VERSION = 3  # of the rows; increase it when they change
ANNOTATIONS = (".json", ".zip")
SPACE_FIELDS = ("name", "names", "stuff_label_ids", "dataset_ids", "ignored_ids", "ignore_index")


def is_large(path: Path) -> bool:
    return sum(size for _, size, _ in _annotation_files(path)) >= MIN_BYTES


def cached_coco(path: Path, task: str, split: str, options: ReadOptions) -> tuple[Dataset, LabelSpace]:
    """Checked rows and label space of `read_coco`, read or taken from the cache."""
    path = path.absolute()  # cached locations are used in other working directories
    arguments = {"path": str(path), "task": task, "split": split, "version": VERSION}
    arguments |= {"keep_empty": options.keep_empty, "crowds_as_instances": options.crowds_as_instances}
    arguments |= {"wanted": _to_json(options.label_space) if options.label_space else None}
    arguments |= {"names": _names(path), "annotations": _annotation_files(path)}
    columns = features("int64")
    columns["label_space"] = Value("large_string")  # only in the first row
    try:
        table = Dataset.from_generator(
            _generate, columns, cache_dir=str(datasets.config.HF_DATASETS_CACHE), gen_kwargs=arguments
        )
    except DatasetGenerationError as error:
        raise error.__cause__ from None
    return table.remove_columns("label_space"), LabelSpace(**json.loads(table[0]["label_space"]))


def _generate(
    path: str, task: str, split: str, wanted: str | None, keep_empty: bool, crowds_as_instances: bool, **key
) -> Iterator[dict]:
    label_space = LabelSpace(**json.loads(wanted)) if wanted else None
    options = ReadOptions(label_space, keep_empty=keep_empty, crowds_as_instances=crowds_as_instances)
    rows, space = read_coco(Path(path), task, split, options)
    rows.check(split)
    for number, row in enumerate(rows.rows):
        yield row | {"label_space": "" if number else _to_json(space)}


def _names(path: Path) -> tuple[str, ...]:
    return tuple(sorted(files_below(str(path)))) if path.is_dir() else ("",)


def _annotation_files(path: Path) -> tuple[tuple[str, int, int], ...]:
    """(name, size, modification time) of the annotation files in a folder, or of a zip."""
    stats = [(name, (path / name).stat()) for name in _names(path) if (name or path.name).endswith(ANNOTATIONS)]
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def _to_json(space: LabelSpace) -> str:
    return json.dumps({name: getattr(space, name) for name in SPACE_FIELDS})
