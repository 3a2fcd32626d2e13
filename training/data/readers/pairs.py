"""Own data without a json: a folder of images beside a folder of label png (semantic) or YOLO txt (instance).

    {train,val}/images/a.jpg   {train,val}/labels/a.png            or   images/{train,val}/…   labels/{train,val}/…
    images/a.jpg               labels/a.png                        no split: each is all of it (hold_out.py splits)

Image folders may also be called `image`, `imgs` or `img`, label folders `label`, `annotations`, `masks`, `gt`,
`ground_truth` or `targets`. Roboflow's label images lie beside their images: `train/a_mask.png`, `train/a.jpg`.
A label's name may end in `_mask` (or `_masks`, `_label`, `_labels`, `_gt`) where its image's does not:
`masks/a_mask.png`.
"""

import re
from pathlib import PurePosixPath

from transformers.utils import logging

from ..files import IMAGE_SUFFIXES, SPLIT_NAMES, Tree, mentions
from ..rows import Rows, is_id

logger = logging.get_logger(__name__)

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "jpegimages")
LABEL_FOLDERS = (
    "labels", "label", "annotations", "annotation", "masks", "mask", "gt", "ground_truth", "groundtruth", "targets",
    "target", "segmentationclass",
)  # fmt: skip
LABEL_SUFFIXES = (".png", ".tif", ".tiff")  # of label images: formats that keep values exactly
LABEL_ENDING = re.compile(r"[_-](masks?|labels?|gt)$", re.IGNORECASE)


def pairs(tree: Tree, split: str, suffixes: tuple[str, ...], rows: Rows | None = None) -> list[tuple[str, str | None]]:
    """(image, label or None) of a split, paired by path and stem. Without any split folder: everything.

    Reported to `rows` as problems: images that differ in their suffix only and would share a label, two labels of one
    image, and label files without an image if no image has a label. Otherwise those are skipped with a warning.
    """
    images: dict[tuple, str] = {}
    others: list[tuple[tuple, str]] = []
    labels: dict[tuple, str] = {}
    twice: list[tuple[tuple, str]] = []
    unread: list[str] = []  # images of a format that is not read
    inexact: list[str] = []  # label images of a format that changes values
    beside = _masks_beside(tree)
    for name in tree.names:
        path = PurePosixPath(name)
        parts = [part.lower() for part in path.parts]
        role = next((i for i, part in enumerate(parts[:-1]) if part in (*IMAGE_FOLDERS, *LABEL_FOLDERS)), None)
        if role is None and beside and (name in beside or path.suffix.lower() in IMAGE_SUFFIXES):
            stem = LABEL_ENDING.sub("", path.stem) if name in beside else path.stem
            (labels if name in beside else images).setdefault((*path.parts[:-1], stem), name)
            continue
        if role is None:
            continue
        key = (*path.parts[:role], *path.parts[role + 1 : -1], path.stem)
        if parts[role] in IMAGE_FOLDERS:
            if path.suffix.lower() in IMAGE_SUFFIXES and images.setdefault(key, name) != name:
                others.append((key, name))
            if path.suffix.lower() in (".heic", ".heif"):
                unread.append(name)
        elif path.suffix.lower() in (".jpg", ".jpeg"):
            inexact.append(name)
        elif path.suffix.lower() in suffixes and labels.setdefault(key, name) != name:
            twice.append((key, name))
    for key in [key for key in labels if key not in images and LABEL_ENDING.search(key[-1])]:
        plain = (*key[:-1], LABEL_ENDING.sub("", key[-1]))
        if plain in images and labels.setdefault(plain, labels[key]) != labels[key]:
            twice.append((plain, labels[key]))
    used = {labels[key] for key in images if key in labels}
    unused = {name for name in labels.values() if name not in used and PurePosixPath(name).stem != "classes"}
    folders = {key: "/".join(key[:-1]) for key in images}
    known = {word for names in SPLIT_NAMES.values() for word in names}
    if any(mentions(folder, word) for folder in {*folders.values()} for word in known):
        for word in SPLIT_NAMES[split]:  # "val" before "valid" before "test"
            chosen = {key: name for key, name in images.items() if mentions(folders[key], word)}
            if chosen:
                break
        images = chosen
    found = [(images[key], labels.get(key)) for key in sorted(images)]
    if rows is None:
        return found

    if unread:
        logger.warning_once(f"{tree}: {len(unread)} HEIC images are skipped, such as {unread[0]}; convert them to JPEG")
    if inexact and ".png" in suffixes and not any(label for _, label in found):
        rows.problem(inexact[0], "a JPEG changes the values of labels; save label images as png")
    for key, name in others:
        if key in images:
            rows.problem(name, f"{images[key]} has the same name but for the suffix; rename or remove one of the two")
    for key, name in twice:
        if key in images:
            rows.problem(name, f"{labels[key]} is a label of the same image; remove one of the two")
    if unused and images and not any(label for _, label in found):
        rows.problem(min(unused), "no image has the name of a label file; name image and label alike")
    elif unused:
        skipped = f"{len(unused)} label files have no image of their name and are skipped"
        logger.warning_once(f"{tree}: {skipped}, such as {min(unused)}")
    return found


def _masks_beside(tree: Tree) -> set[str]:
    """Label images `a_mask.png` in the folder of their image `a.jpg`, where no folder says which are which."""
    folders = {part.lower() for name in tree.names for part in PurePosixPath(name).parts[:-1]}
    if folders & {*IMAGE_FOLDERS, *LABEL_FOLDERS}:
        return set()
    stems = {str(PurePosixPath(name).with_suffix("")) for name in tree.names}
    masks = (name for name in tree.names if name.endswith(".png") and LABEL_ENDING.search(PurePosixPath(name).stem))
    return {name for name in masks if LABEL_ENDING.sub("", str(PurePosixPath(name).with_suffix(""))) in stems}


def image_ids(images: list[str]) -> dict[str, str]:
    """What an image is called: its stem, or its whole path where two folders have the same stem."""
    stems = {image: PurePosixPath(image).stem for image in images}
    unique = len(set(stems.values())) == len(stems)
    return stems if unique else {image: str(PurePosixPath(image).with_suffix("")) for image in images}


def numbered_classes(names, source: str) -> dict[int, str]:
    """A list of names, or {number: name} → {number: name}."""
    if not isinstance(names, (list, dict)):
        raise ValueError(f"{source}: class names must be a list or numbered, not {names!r:.60}")
    numbered = {}
    for number, name in names.items() if isinstance(names, dict) else enumerate(names):
        if isinstance(number, str) and re.fullmatch(r"\s*\d{1,18}\s*", number):
            number = int(number)
        if not is_id(number) or number < 0 or number in numbered:
            raise ValueError(f"{source}: classes are numbered by integers, each by its own, not as in {number!r:.60}")
        if not isinstance(name, str | int | float):  # a yaml's may be nested without end
            raise ValueError(f"{source}: the name of class {number} is not text, but a {type(name).__name__}")
        numbered[number] = str(name)
    return numbered
