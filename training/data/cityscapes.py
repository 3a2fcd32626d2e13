"""Cityscapes semantic (19 classes): `leftImg8bit_trainvaltest.zip` + `gtFine_trainvaltest.zip`, or both extracted.

Label PNGs are `*_gtFine_labelIds.png`. Ids 7, 8, 11, … are the labels 0 … 18 (configuration/data/cityscapes.json).
"""

from pathlib import Path, PurePosixPath

from ...configuration.labels import LabelSpace, label_space
from .files import Tree, first_tree
from .rows import ReadOptions, Rows


def is_cityscapes(tree: Tree, task: str) -> bool:
    return any((tree.root / name).exists() for name in ("gtFine", "gtFine_trainvaltest.zip"))


def read_cityscapes(path: Path, task: str, split: str, options: ReadOptions) -> tuple[Rows, LabelSpace]:
    """Rows of one split, sorted by city and name, and the label space."""
    images = first_tree((path / "leftImg8bit", ""), (path / "leftImg8bit_trainvaltest.zip", "leftImg8bit"))
    ground_truth = first_tree((path / "gtFine", ""), (path / "gtFine_trainvaltest.zip", "gtFine"))
    if images is None:
        raise ValueError(f"{path}: it has gtFine but no leftImg8bit(_trainvaltest.zip) with the images")
    rows = Rows(str(path), "semantic")
    labels = set(ground_truth.names)
    for name in images.names:
        if not (name.startswith(f"{split}/") and name.endswith("_leftImg8bit.png")):
            continue
        label = name.removesuffix("_leftImg8bit.png") + "_gtFine_labelIds.png"
        with rows.problems.at(name):
            if label not in labels:
                raise ValueError(f"there is no {label} in {ground_truth}")
            stem = PurePosixPath(name).stem.removesuffix("_leftImg8bit")
            rows.add(stem, name, images.locate(name), ground_truth.locate(label))
    return rows, options.match(label_space("cityscapes_semantic"), path)
