"""Data sets of Hugging Face's `datasets` library with images and label maps: a folder of `save_to_disk` or of parquet
files, or a name on the hub (`dataset="hub"`). Semantic.

The image is the column `image` (or `pixel_values`, `img`), its label map the other column of images. Rows stay in the
Arrow files: a location names the row, and its bytes are read when they are needed.
"""

from pathlib import Path, PurePosixPath

from datasets import Dataset, DatasetDict, Image

from ...configuration.labels import LabelSpace
from .files import IMAGE_SUFFIXES, SPLIT_NAMES, Tree, is_saved, open_table
from .folders import numbered_space
from .rows import ReadOptions, Rows

IMAGE_COLUMNS = ("image", "pixel_values", "img")


def is_hub(tree: Tree, task: str) -> bool:
    if is_saved(tree.root):
        return True
    suffixes = {PurePosixPath(name).suffix.lower() for name in tree.names}
    return ".parquet" in suffixes and not suffixes & {*IMAGE_SUFFIXES}


def hub_splits(path: Path, task: str) -> list[str]:
    """The splits that the data names."""
    table = open_table(str(path))
    named = set(table) if isinstance(table, DatasetDict) else set()
    return [split for split, words in SPLIT_NAMES.items() if named & set(words)]


def read_hub(path: Path, task: str, split: str, options: ReadOptions) -> tuple[Rows, LabelSpace]:
    """Rows and label space of one split; classes are named as those of a folder of label images without a file."""
    table = open_table(str(path))
    parts = table if isinstance(table, DatasetDict) else {"": table}
    name = next((word for word in ("", *SPLIT_NAMES[split]) if word in parts), None)
    if name is None:
        raise ValueError(f"{path}: there is no split {split!r} among {', '.join(parts)}")
    image, label = _columns(parts[name], path)
    rows = Rows(str(path), "semantic")
    for number in range(len(parts[name])):
        locations = [f"row://{number}::{column}::{name}::{path}" for column in (image, label)]
        rows.add(number, f"{name or path.name} {number}", *locations)
    first = "train" if "train" in parts else name  # its values name the classes, for validation too
    count = len(parts[first])
    labels = [(f"row://{number}::{label}::{first}::{path}", f"{first} {number}") for number in range(count)]
    names = options.class_names or options.known_names
    return rows, options.match(numbered_space(path, names, labels, options), path)


def _columns(table: Dataset, path: Path) -> tuple[str, str]:
    """The columns of the image and of its label map."""
    pictures = [name for name, feature in table.features.items() if isinstance(feature, Image)]
    images = [name for name in IMAGE_COLUMNS if name in pictures]
    labels = [name for name in pictures if name not in images]
    if len(images) != 1 or len(labels) != 1:
        raise ValueError(
            f"{path}: its columns of images are {', '.join(pictures) or 'none'}; one called 'image' and one other, its "
            "label map, are needed: rename or remove some"
        )
    return images[0], labels[0]
