"""Own data without a validation split: a tenth of its images, chosen by their names, are held out as one.

The choice needs no file: every command makes the same one, and images that are added later do not change it.
"""

from hashlib import sha256
from pathlib import Path, PurePosixPath

from datasets import Dataset

from .files import SPLIT_NAMES, Tree
from .readers.coco_layout import mentions, search_trees

SHARE = 0.1
SEED = "0"
FEWEST = 5
UNSPLIT = ([], ["train"])
"""Splits named by data that has none for validation."""


def named_splits(path: Path, dataset: str, task: str) -> list[str]:
    """The splits that the data's paths name; of formats that fix them, training and validation."""
    if dataset == "coco":
        names = [name for tree in search_trees(path, task, "val") for name in tree.names if name.endswith(".json")]
    elif dataset in ("folder", "yolo"):
        names = [str(PurePosixPath(name).parent) for name in Tree(path).names]
    else:
        return ["train", "val"]

    def mentioned(names: list[str]) -> list[str]:
        return [split for split, words in SPLIT_NAMES.items() if any(mentions(n, w) for w in words for n in names)]

    return mentioned(names) or mentioned([path.stem])  # the folder itself may be called "val"


def hold_out(table: Dataset, split: str) -> Dataset:
    """The split's rows: "val" is whose name has a low hash, about a tenth; at least one image, at most a fifth.

    Fewer than five images are not split: both are all of them.
    """
    if len(table) < FEWEST:
        return table
    hashes = [sha256(f"{SEED}:{name}".encode()).digest() for name in table["file_name"][:]]
    lowest = sorted(hashes)[: len(hashes) // 5]  # of few images, many hashes may be low by chance
    limit = max(lowest[0], min(lowest[-1], round(SHARE * 256).to_bytes()))
    return table.select([i for i, value in enumerate(hashes) if (value <= limit) == (split == "val")])
