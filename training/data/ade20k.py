"""ADE20K (150 classes), semantic and panoptic: `ADEChallengeData2016.zip`, `annotations_instance.zip`, or extracted.

Semantic pngs hold 1 … 150, 0 is unlabeled. Panoptic ground truth comes from two pngs, as in the authors' code: stuff
from the semantic one, things from the instance one: its red channel is the category 1 … 100 (the c-th class that is
not stuff), its green channel the instance, 0 being none. Things overwrite stuff. There are no crowds.
"""

from pathlib import Path, PurePosixPath

import numpy as np

from ...configuration.labels import LabelSpace, label_space
from .files import Tree, first_tree
from .rows import ReadOptions, Rows

FOLDERS = {"train": "training", "val": "validation"}
ROOT = "ADEChallengeData2016"


def is_ade20k(tree: Tree, task: str) -> bool:
    path = tree.root
    return path.name in (ROOT, f"{ROOT}.zip") or any((path / name).exists() for name in (ROOT, f"{ROOT}.zip"))


def read_ade20k(path: Path, task: str, split: str, options: ReadOptions) -> tuple[Rows, LabelSpace]:
    """Rows of one split, ordered as the authors' (by the number in the name), and the label space."""
    main = first_tree((path / ROOT, ""), (path / f"{ROOT}.zip", ROOT), (path, ROOT if path.is_file() else ""))
    rows = Rows(str(main), "semantic" if task == "semantic" else "ade20k_panoptic")
    maps = main.stems(f"annotations/{FOLDERS[split]}")
    things, tree = {}, None
    if task == "panoptic":
        base = path.parent if path.name.startswith(ROOT) else path
        tree = first_tree(
            (base / "annotations_instance", ""),
            (main.root / "annotations_instance", "") if not main.is_archive else (base / "annotations_instance", ""),
            (base / "annotations_instance.zip", ""),
        )
        if tree is None:
            raise ValueError(f"{base}: ADE20K panoptic also needs annotations_instance(.zip) with the instance pngs")
        things = tree.stems(FOLDERS[split])
    for stem, image in main.stems(f"images/{FOLDERS[split]}").items():
        with rows.problems.at(image):
            if stem not in maps or (task == "panoptic" and stem not in things):
                folder = "annotations" if stem not in maps else "annotations_instance"
                raise ValueError(f"there is no png named {stem!r} in {folder}/{FOLDERS[split]}")
            other = tree.locate(things[stem]) if things else ""
            rows.add(stem, PurePosixPath(image).name, main.locate(image), main.locate(maps[stem]), other)
    return rows, options.match(label_space(f"ade20k_{task}"), path)


def panoptic_map(semantic: np.ndarray, instance: np.ndarray, space: LabelSpace) -> tuple[np.ndarray, list[dict]]:
    """Semantic png (H, W) and instance png as R + 256 G (H, W) → id map int32 (H, W), −1 void, and its segments.

    The pngs have the data set's own classes, whichever order `space` has them in: a stuff segment's id is its
    label there, an instance's 1000 × (its number + 1) + its label there. Only the segments' `label_id` is of `space`.
    """
    own = label_space("ade20k_panoptic")
    things = np.array([label for label in range(own.num_labels) if label not in own.stuff_label_ids])
    category, number = instance & 255, (instance >> 8) & 255  # [H, W] each; blue is unused
    if category.max(initial=0) > len(things):
        raise ValueError(f"its instance png has category {category.max()}; there are {len(things)} things")
    if semantic.max(initial=0) > own.num_labels:
        raise ValueError(f"its label png has the value {semantic.max()}; there are {own.num_labels} classes")
    is_stuff = np.zeros(own.num_labels + 1, bool)
    is_stuff[np.array(own.stuff_label_ids, int) + 1] = True
    ids = np.where(is_stuff[semantic], semantic - 1, -1).astype(np.int32)  # [H, W]
    inside = (number > 0) & (category > 0)
    ids[inside] = things[category[inside] - 1] + 1000 * (number[inside] + 1)
    labels = [space.dataset_id_to_label[i] for i in own.dataset_ids]
    return ids, [{"id": int(i), "label_id": labels[i % 1000], "iscrowd": 0} for i in np.unique(ids) if i >= 0]
