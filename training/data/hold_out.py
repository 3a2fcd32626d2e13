"""Own data without a validation split: a tenth of its images, chosen by their names, are held out as one.

The choice needs no file: every command makes the same one, and images that are added later do not change it.
"""

from hashlib import sha256
from pathlib import Path, PurePosixPath

from datasets import Dataset

from .files import IMAGE_SUFFIXES, SPLIT_NAMES, Tree, mentions
from .readers.coco import KINDS, is_kind, search_trees
from .readers.hub import hub_splits
from .readers.voc import voc_splits

SHARE = 0.1
SEED = "0"
FEWEST = 5
UNSPLIT = ([], ["train"])
"""Splits named by data that has none for validation."""


def named_splits(path: Path, dataset: str, task: str) -> list[str]:
    """The splits that the data's paths name; of formats that fix them, training and validation."""

    def mentioned(names: list[str]) -> list[str]:
        return [split for split, words in SPLIT_NAMES.items() if any(mentions(n, w) for w in words for n in names)]

    if dataset == "coco":
        trees = search_trees(path, "val")
        found = [(tree, name) for tree in trees for name in tree.names if name.endswith(".json") and mentioned([name])]
        names = [name for tree, name in found if any(is_kind(tree, name, kind) for kind in KINDS[task])]
    elif dataset in ("folder", "yolo"):
        images = filter(lambda image: image.suffix.lower() in IMAGE_SUFFIXES, map(PurePosixPath, Tree(path).names))
        names = [str(image.parent) for image in images]
    elif dataset == "hub":
        return hub_splits(path)
    elif dataset == "voc":
        return voc_splits(Tree(path))
    else:
        return ["train", "val"]
    own_name = path.stem.rstrip("0123456789").lower()  # the folder itself may be called "val", but not "my-test"
    return mentioned(names) or [split for split, words in SPLIT_NAMES.items() if own_name in words]


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
