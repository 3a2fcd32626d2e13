"""Data sets of Hugging Face's `datasets` library with images and label maps: a folder of `save_to_disk`, or a name on
the hub (`dataset="hub"`). Semantic.

The image is the column `image` (or `pixel_values`, `img`), its label map the other column of images. Rows stay in the
Arrow files: a location names the row, and its bytes are read when they are needed.
"""

from pathlib import Path

from datasets import Dataset, DatasetDict, Image

from ....configuration.labels import LabelSpace
from ..files import SPLIT_NAMES, open_table
from ..rows import Rows
from .folder import numbered_space
from .options import ReadOptions

IMAGE_COLUMNS = ("image", "pixel_values", "img")


def is_hub(path: Path) -> bool:
    return any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))


def hub_splits(path: str | Path) -> list[str]:
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
    labels = [f"row://{number}::{label}::{first}::{path}" for number in range(len(parts[first]))]
    names = options.class_names or options.known_names
    space = numbered_space(path, names, [(location, f"{first} {i}") for i, location in enumerate(labels)], options)
    return rows, options.match(space, path)


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
