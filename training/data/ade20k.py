"""ADE20K (150 classes), semantic and panoptic: `ADEChallengeData2016.zip`, `annotations_instance.zip`, or extracted.

Semantic PNGs have the values 1 … 150, and 0 for unlabeled. Panoptic ground truth combines two PNGs, as in the authors'
code: stuff of the semantic PNG, and things of the instance PNG on top. The red channel of the instance PNG is the thing
category 1 … 100 (in the order of the classes), the green channel the instance, 0 for none. There are no crowds.
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
    """Rows of one split, in the authors' order (by the number in the name), and the label space."""
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
            raise ValueError(f"{base}: ADE20K panoptic also needs annotations_instance(.zip) with the instance PNGs")
        things = tree.stems(FOLDERS[split])
    for stem, image in main.stems(f"images/{FOLDERS[split]}").items():
        with rows.problems.at(image):
            if stem not in maps or (task == "panoptic" and stem not in things):
                folder = "annotations" if stem not in maps else "annotations_instance"
                raise ValueError(f"there is no PNG named {stem!r} in {folder}/{FOLDERS[split]}")
            other = tree.locate(things[stem]) if things else ""
            rows.add(stem, PurePosixPath(image).name, main.locate(image), main.locate(maps[stem]), other)
    return rows, options.match(label_space(f"ade20k_{task}"), path)


def panoptic_map(semantic: np.ndarray, instance: np.ndarray, space: LabelSpace) -> tuple[np.ndarray, list[dict]]:
    """The panoptic segmentation of a semantic PNG (H, W) and an instance PNG (H, W) as R + 256 G.

    Returns:
        ids int32 (H, W), −1 for void, and segments. The id of a stuff segment is its ADE20K label, the id of an
        instance 1000 × (number + 1) + its ADE20K label. A segment's `label_id` is its label in `space`.

    Raises:
        ValueError: for an unknown class or category.
    """
    own = label_space("ade20k_panoptic")
    things = np.array([label for label in range(own.num_labels) if label not in own.stuff_label_ids])
    category, number = instance & 255, (instance >> 8) & 255  # [H, W]
    if category.max(initial=0) > len(things):
        raise ValueError(f"its instance PNG has category {category.max()}; there are {len(things)} things")
    if semantic.max(initial=0) > own.num_labels:
        raise ValueError(f"its label PNG has the value {semantic.max()}; there are {own.num_labels} classes")
    is_stuff = np.zeros(own.num_labels + 1, bool)
    is_stuff[np.array(own.stuff_label_ids, int) + 1] = True
    ids = np.where(is_stuff[semantic], semantic - 1, -1).astype(np.int32)  # [H, W]
    inside = (number > 0) & (category > 0)
    ids[inside] = things[category[inside] - 1] + 1000 * (number[inside] + 1)
    labels = [space.dataset_id_to_label[i] for i in own.dataset_ids]
    return ids, [{"id": int(i), "label_id": labels[i % 1000], "iscrowd": 0} for i in np.unique(ids) if i >= 0]
