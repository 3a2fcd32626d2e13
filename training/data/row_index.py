"""An index of a large data set: its rows in an Arrow file, which every process and worker maps into memory.

Reading COCO's half a gigabyte of json takes a minute and gigabytes. It is done once, by one process; what it found is
kept in datasets' own cache folder (`HF_DATASETS_CACHE`) and used as long as the files below the data's folder, their
sizes and the options stay the same.
"""

import json
import logging
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import datasets
from datasets import Dataset
from filelock import FileLock

from ...configuration.labels import LabelSpace
from ..files import atomic, read_json
from .files import files_below

MIN_BYTES = 1 << 25  # of annotation files: smaller ones are read in a second or two
VERSION = 2  # of the rows; another one is another index
ANNOTATIONS = (".json", ".zip")
_SPACE = "label_space.json"
_FIELDS = ("name", "names", "stuff_label_ids", "dataset_ids", "ignored_ids", "ignore_index")

logger = logging.getLogger(__name__)


def indexed(path: Path, options: str, read: Callable[[Path], tuple[Dataset, LabelSpace]]) -> tuple[Dataset, LabelSpace]:
    """What `read(path)` gives, out of the index where there is one; small data is read anew each time.

    Args:
        path: the data's folder or archive. It is made absolute for the index, whose rows hold locations below it: they
            are used from other working directories.
        options: everything else that the result depends on.
    """
    absolute = path.absolute()
    key = _key(absolute, options)
    if key is None:
        return read(path)
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "eomt" / key
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{folder}.lock").acquire()  # the processes of a run wait for the first
    except OSError as error:
        _warn(folder, error)
        return read(absolute)
    with lock:
        if not folder.exists():
            table, space = read(absolute)
            try:
                _write(folder, table, space)
            except OSError as error:
                _warn(folder, error)
                return table, space
    fields = read_json(folder / _SPACE)
    return Dataset.load_from_disk(str(folder)), LabelSpace(**fields)


def _warn(folder: Path, error: OSError) -> None:
    logger.warning(f"no index can be kept in {folder.parent} ({error}); the annotations are read as they are")


def _key(path: Path, options: str) -> str | None:
    """A digest of the names of all files, sizes and times of the annotations, and the options; None for small data."""
    root = path if path.is_dir() else path.parent
    names = sorted(files_below(str(path))) if path.is_dir() else [path.name]
    annotations = [(name, (root / name).stat()) for name in names if name.endswith(ANNOTATIONS)]
    if sum(stat.st_size for _, stat in annotations) < MIN_BYTES:
        return None
    digest = sha256(f"{VERSION}\n{path}\n{options}\n".encode())
    digest.update("\n".join(names).encode(errors="surrogateescape"))
    for name, stat in annotations:
        digest.update(f"{name}\n{stat.st_size}\n{stat.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:32]


def _write(folder: Path, table: Dataset, space: LabelSpace) -> None:
    fields = {name: getattr(space, name) for name in _FIELDS}
    if not space.knows_dataset_ids:
        fields["dataset_ids"] = ()
    with atomic(folder, folder=True) as part:
        table.save_to_disk(str(part))
        (part / _SPACE).write_text(json.dumps(fields), encoding="utf-8")
