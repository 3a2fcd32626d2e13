"""Own data with a `train` folder only: a tenth of its images, chosen by their names, are held out for validation.

The choice needs no file: every command makes the same one, and images that are added later do not change it.
"""

from hashlib import sha256
from pathlib import Path, PurePosixPath

from datasets import Dataset

from .files import SPLIT_NAMES, Tree
from .readers.coco_layout import mentions, search_trees

SHARE = 0.1
SEED = "0"


def has_train_only(path: Path, dataset: str, task: str) -> bool:
    """Whether the data has been given a training split and no other."""
    if dataset == "coco":
        names = [name for tree in search_trees(path, task, "val") for name in tree.names if name.endswith(".json")]
    elif dataset in ("folder", "yolo"):
        names = [str(PurePosixPath(name).parent) for name in Tree(path).names]
    else:
        return False

    def is_there(split: str) -> bool:
        return any(mentions(name, word) for word in SPLIT_NAMES[split] for name in names)

    return [split for split in SPLIT_NAMES if is_there(split)] == ["train"]


def hold_out(table: Dataset, split: str, source: str) -> Dataset:
    """The split's rows: "val" is whose name has a low hash, about a tenth, and at least one image."""
    if len(table) < 2:
        raise ValueError(f"{source}: it has a train split of one image; add a val split, or images")
    hashes = [sha256(f"{SEED}:{name}".encode()).digest() for name in table["file_name"][:]]
    limit = max(min(hashes), round(SHARE * 256).to_bytes())
    return table.select([i for i, value in enumerate(hashes) if (value <= limit) == (split == "val")])
