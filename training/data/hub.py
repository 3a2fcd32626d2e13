"""Semantic data sets of the `datasets` library: folders of `save_to_disk` or Parquet files, and names on the Hub.

A name on the Hub needs `dataset="hub"`. Images are in the column `image` (or `pixel_values`, `img`), label images in
the only other column of images. Pixels stay in the Arrow files: a location names the row.
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
    table = open_table(str(path))
    named = set(table) if isinstance(table, DatasetDict) else set()
    return [split for split, words in SPLIT_NAMES.items() if named & set(words)]


def read_hub(path: Path, task: str, split: str, options: ReadOptions) -> tuple[Rows, LabelSpace]:
    """Rows and label space of one split. Classes take their names from the options or the model (`numbered_space`)."""
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
    train = "train" if "train" in parts else name  # every split has the classes of the training split
    count = len(parts[train])
    labels = [(f"row://{number}::{label}::{train}::{path}", f"{train} {number}") for number in range(count)]
    names = options.class_names or options.known_names
    return rows, options.match(numbered_space(path, names, labels, options), path)


def _columns(table: Dataset, path: Path) -> tuple[str, str]:
    """The columns of images and label images."""
    columns = [name for name, feature in table.features.items() if isinstance(feature, Image)]
    images = [name for name in IMAGE_COLUMNS if name in columns]
    labels = [name for name in columns if name not in images]
    if len(images) != 1 or len(labels) != 1:
        raise ValueError(
            f"{path}: its columns of images are {', '.join(columns) or 'none'}; rename or remove columns until there "
            "are two, 'image' and a label image"
        )
    return images[0], labels[0]
