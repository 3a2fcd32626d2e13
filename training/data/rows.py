"""Rows: the images of a data set as a format reader returns them, and the caller's wishes that every reader gets.

Malformed annotations are collected with file and id, and reported together before training starts. The Arrow table
holds paths and small annotations only.
"""

import json
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from datasets import Dataset, Features, List, Value

from ...configuration.labels import LabelSpace
from .polygons import check_shape

SEGMENT = {
    "id": Value("int64"),
    "label_id": Value("int64"),
    "iscrowd": Value("int64"),
    "area": Value("float64"),
    "shape": Value("large_string"),
}
LISTED = ("panoptic", "instance", "panoptic_as_instance")  # layouts of rows that list their segments
_encode = json.JSONEncoder(separators=(",", ":")).encode


def features(id_type: str) -> Features:
    """The columns of a data set; see the package's docstring. id_type: of image ids, "int64" or "string"."""
    texts = dict.fromkeys(("file_name", "image", "annotation", "second_png", "layout"), Value("string"))
    numbers = {"size": List(Value("int32")), "score_floor": Value("float64")}
    return Features({"image_id": Value(id_type), **texts, "segments": List(SEGMENT), **numbers})


def evenly_sampled(table: Dataset, most: int = 200) -> Dataset:
    """At most this number of rows, evenly over the data set, without its transform."""
    places = np.linspace(0, len(table) - 1, min(most, len(table))).astype(int)
    return table.with_format(None).select(places.tolist())


class UnknownClass(ValueError):
    """The data has a class that is not in the wanted label space; the message names it."""


class DataProblems(ValueError):
    """Malformed annotations: `args` has one message each, the error's text the first three."""

    def __str__(self) -> str:
        more = f" (and {len(self.args) - 3} more problems)" if len(self.args) > 3 else ""
        return "; ".join(self.args[:3]) + more


class Problems(list):
    """Messages about malformed annotations."""

    @contextmanager
    def at(self, where: str) -> Iterator[None]:
        """List a `ValueError` as a problem of `where`, and continue after the block."""
        try:
            yield
        except ValueError as error:
            self.append(f"{where}: {error}")


@dataclass
class Rows:
    """The rows of one data set and the problems found in it."""

    source: str
    layout: str
    score_floor: float = 0.0
    rows: list[dict] = field(default_factory=list)
    problems: Problems = field(default_factory=Problems)

    def add(self, image_id, file_name, image, annotation="", second_png="", segments=(), size=()) -> None:
        row = {"image_id": image_id, "file_name": file_name, "image": image, "annotation": annotation}
        row |= {"second_png": second_png, "segments": list(segments), "size": list(size), "layout": self.layout}
        self.rows.append(row | {"score_floor": self.score_floor})

    def check(self, split: str) -> None:
        """Whether the rows can be used for this split.

        Raises:
            DataProblems: if there are problems.
            ValueError: if there is no image, or nothing to learn from in a training split.
        """
        self.require_sound()
        if not self.rows:
            raise ValueError(
                f"{self.source}: the data set is empty; no image was found; docs/data-formats.md has the layouts"
            )
        if split != "train" or self.layout not in LISTED:
            return
        crowds = [segment["iscrowd"] for row in self.rows for segment in row["segments"]]
        if not crowds:
            raise ValueError(f"{self.source}: no image has a segment; training needs some")
        if all(crowds) and self.score_floor:
            raise ValueError(f"{self.source}: all of its {len(crowds)} segments score below {self.score_floor:g}")
        if all(crowds):
            raise ValueError(
                f"{self.source}: all of its {len(crowds)} segments are crowds (iscrowd 1), which are not learned; "
                "crowds_as_instances takes them as instances (CVAT marks every mask so)"
            )

    def require_sound(self) -> None:
        """Raise `DataProblems` if there are problems."""
        if self.problems:
            raise DataProblems(*self.problems)

    def table(self) -> Dataset:
        columns = features("int64" if isinstance(self.rows[0]["image_id"], int) else "string")
        return Dataset.from_dict({name: [row[name] for row in self.rows] for name in columns}, features=columns)


def segment_entry(id: int, label_id: int, iscrowd: int = 0, area: float = -1.0, shape="") -> dict:
    """One entry of a row's `segments`; `area` −1: count the pixels."""
    text = shape if isinstance(shape, str) else _encode(shape)
    return {"id": id, "label_id": label_id, "iscrowd": int(iscrowd), "area": float(area), "shape": text}


def make_row(image, annotation="", *, layout: str, segments: Iterable[dict] = (), file_name: str = "image") -> dict:
    """A row of one's own data, of `datasets` or not, as `TrainTransform.row` and `EvaluationTransform.row` take it.

    image, annotation: PIL images, or paths; annotation: the png of layout "semantic" or "panoptic".
    segments: {"label_id", "id"?, "iscrowd"?, "shape"?}; ids of a panoptic png; shape: of layout "instance", COCO's
        polygons, or run lengths {"size": [H, W], "counts": str or list}.

    Raises:
        ValueError: for a malformed shape.
    """
    entries = []
    for number, segment in enumerate(segments, 1):
        if "shape" in segment:
            check_shape(segment["shape"])
        entries.append(segment_entry(**({"id": number} | segment)))
    rows = Rows(file_name, layout)
    rows.add(0, file_name, image, annotation, segments=entries)
    return rows.rows[0]


@dataclass(frozen=True)
class ReadOptions:
    """Wishes of the caller of `load_data`; a reader takes those that concern its format."""

    label_space: LabelSpace | None = None
    "Classes to match the data's to, by name (a model's). None: the data's own."
    class_names: dict[int, str] | None = None
    "Names of pixel values, instead of any classes file (label images)."
    ignore_ids: tuple[int, ...] = ()
    "Pixel values that mean unlabeled (label images)."
    keep_empty: bool = True
    "Whether images without any segment are rows."
    crowds_as_instances: bool = False
    "Whether `iscrowd` is ignored (COCO instances): CVAT sets it on every mask that it exports."
    score_floor: float = 0.0
    "Predictions read as data: segments that score less are not learned."

    @property
    def known_names(self) -> dict[int, str] | None:
        """The wanted label space's pixel value → class, where it knows its data set's values."""
        space = self.label_space
        if space is None or not space.knows_dataset_ids:
            return None
        return {i: space.names[label] for i, label in space.dataset_id_to_label.items() if i >= 0} or None

    def match(self, own: LabelSpace, source) -> LabelSpace:
        """The data's own label space, or the wanted one with the data's ids (`match_labels`)."""
        twice = [name for name in own.names if own.names.count(name) > 1]
        if twice:
            raise ValueError(f"{source}: two classes are called {twice[0]!r}; give each a name of its own")
        return own if self.label_space is None else match_labels(own, self.label_space, source)


def match_labels(own: LabelSpace, wanted: LabelSpace, source) -> LabelSpace:
    """The wanted label space with the ids that data, or predictions, have for its classes, matched by name.

    The data decides which classes are stuff where the wanted space does not (models of plain transformers).

    Raises:
        UnknownClass: for a class that the wanted space does not have.
    """
    label_of, id_of = wanted.label2id, dict(zip(own.names, own.dataset_ids))
    unknown = [name for name in own.names if name not in label_of]
    if unknown:
        raise UnknownClass(
            f"{source}: its class {unknown[0]!r} is not among the {wanted.num_labels} of {wanted.name!r}"
        )
    stuff = wanted.stuff_label_ids or tuple(sorted(label_of[own.names[label]] for label in own.stuff_label_ids))
    absent = iter(range(-1, -1 - wanted.num_labels, -1))  # ids that the data cannot contain
    ids = tuple(id_of[name] if name in id_of else next(absent) for name in wanted.names)
    return LabelSpace(wanted.name, wanted.names, stuff, ids, own.ignored_ids, wanted.ignore_index)


def objects(entries, what: str = "it") -> list[dict]:
    """A list of objects, as a json has it."""
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{what} is not a list of objects")
    return entries


def member(data, key: str) -> list[dict]:
    """A list of objects in an object of a json."""
    return objects(data.get(key) if isinstance(data, dict) else None, repr(key))


def is_id(value) -> bool:
    """Whether a value of a json is an integer that 64 bits hold; true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def is_number(value) -> bool:
    """Whether a value of a json is a finite number that a float can hold."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def label_of(entry: dict, space: LabelSpace) -> int:
    """The label of an annotation's `category_id`."""
    category = entry.get("category_id")
    if not is_id(category) or category not in space.dataset_id_to_label:
        raise ValueError(f"category {category!r} is not among the data set's")
    return space.dataset_id_to_label[category]
