"""Rows, one per image, and the options that all format readers share.

A row holds locations and small annotations only. Readers collect malformed annotations with file and id, so that all
of them are reported before training starts.
"""

import json
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count

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
LISTED = ("panoptic", "instance", "panoptic_as_instance")  # layouts with segments in the rows
_encode = json.JSONEncoder(separators=(",", ":")).encode


def features(id_type: str) -> Features:
    """The columns of a data set (package docstring). `id_type` is the type of image ids: "int64" or "string"."""
    texts = dict.fromkeys(("file_name", "image", "annotation", "second_png", "layout"), Value("string"))
    numbers = {"size": List(Value("int32")), "score_floor": Value("float64")}
    return Features({"image_id": Value(id_type), **texts, "segments": List(SEGMENT), **numbers})


def evenly_sampled(table: Dataset, most: int = 200) -> Dataset:
    """At most `most` rows, evenly spaced over the data set, without its transform."""
    places = np.linspace(0, len(table) - 1, min(most, len(table))).astype(int)
    return table.with_format(None).select(places.tolist())


class UnknownClass(ValueError):
    """The data has a class that the wanted label space lacks."""


class DataProblems(ValueError):
    """Malformed annotations. `args` holds all messages; the text of the error shows the first three."""

    def __str__(self) -> str:
        more = f" (and {len(self.args) - 3} more problems)" if len(self.args) > 3 else ""
        return "; ".join(self.args[:3]) + more


class Problems(list):
    """Messages about malformed annotations."""

    @contextmanager
    def at(self, where: str) -> Iterator[None]:
        """Record a `ValueError` as a problem at `where` and continue after the block."""
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
        """Check that the rows can be used for a split.

        Raises:
            DataProblems: for malformed annotations.
            ValueError: for a data set without images, or a training split without segments to learn.
        """
        self.require_sound()
        if not self.rows:
            raise ValueError(f"{self.source}: no images for split {split!r}; see docs/data-formats.md for the layouts")
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
                "set crowds_as_instances to learn them (CVAT exports every mask as a crowd)"
            )

    def require_sound(self) -> None:
        """Raises `DataProblems` for malformed annotations."""
        if self.problems:
            raise DataProblems(*self.problems)

    def table(self) -> Dataset:
        columns = features("int64" if isinstance(self.rows[0]["image_id"], int) else "string")
        return Dataset.from_dict({name: [row[name] for row in self.rows] for name in columns}, features=columns)


def segment_entry(id: int, label_id: int, iscrowd: int = 0, area: float = -1.0, shape="") -> dict:
    """One entry of a row's `segments`. An area of −1 means that evaluation counts the pixels."""
    text = shape if isinstance(shape, str) else _encode(shape)
    return {"id": id, "label_id": label_id, "iscrowd": int(iscrowd), "area": float(area), "shape": text}


def make_row(image, annotation="", *, layout: str, segments: Iterable[dict] = (), file_name: str = "image") -> dict:
    """The row of one image of any source, for `TrainTransform.row` and `EvaluationTransform.row`.

    Args:
        image: PIL image or path.
        annotation: PIL image or path of the label PNG (layouts "semantic" and "panoptic").
        layout: a key of `LAYOUTS` in samples.py.
        segments: dicts with "label_id" and optionally "id" (in a panoptic PNG), "iscrowd" and "shape" (layout
            "instance": COCO polygons, or RLE {"size": [H, W], "counts": str or list}).
        file_name: name of the image in error messages.

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
    """Options of `load_data`. Each format reader uses those that apply to its format."""

    label_space: LabelSpace | None = None
    "Label space of a model, matched to the data by class name. None: the label space of the data."
    class_names: dict[int, str] | None = None
    "Label images: names of pixel values, instead of a classes file."
    ignore_ids: tuple[int, ...] = ()
    "Label images: pixel values of unlabeled pixels."
    keep_empty: bool = True
    "Whether to keep images without segments."
    crowds_as_instances: bool = False
    "COCO instances: whether to ignore `iscrowd`. CVAT sets it on every mask."
    score_floor: float = 0.0
    "Pseudo-labels: minimum score of a segment to be learned."

    @property
    def known_names(self) -> dict[int, str] | None:
        """{pixel value: class name} of the wanted label space, or None if its pixel values are unknown."""
        space = self.label_space
        if space is None or not space.knows_dataset_ids:
            return None
        names = {i: space.names[label] for i, label in space.dataset_id_to_label.items() if i >= 0}
        return names or None

    def match(self, own: LabelSpace, source) -> LabelSpace:
        """The label space of the data, or the wanted one with the ids of the data (`match_labels`)."""
        repeated = [name for name in own.names if own.names.count(name) > 1]
        if repeated:
            raise ValueError(f"{source}: two classes have the name {repeated[0]!r}; rename one of them")
        return own if self.label_space is None else match_labels(own, self.label_space, source)


def match_labels(own: LabelSpace, wanted: LabelSpace, source) -> LabelSpace:
    """The wanted label space with the ids of data or predictions (`own`), matched by class name.

    Stuff classes are those of the wanted label space, or of the data if it has none (plain Transformers models).

    Raises:
        UnknownClass: for a class that the wanted label space lacks.
    """
    label2id, dataset_id = wanted.label2id, dict(zip(own.names, own.dataset_ids))
    unknown = [name for name in own.names if name not in label2id]
    if unknown:
        raise UnknownClass(
            f"{source}: its class {unknown[0]!r} is not among the {wanted.num_labels} classes of {wanted.name!r}"
        )
    stuff = wanted.stuff_label_ids or tuple(sorted(label2id[own.names[label]] for label in own.stuff_label_ids))
    absent = count(-1, -1)  # ids that the data cannot contain
    ids = tuple(dataset_id[name] if name in dataset_id else next(absent) for name in wanted.names)
    return LabelSpace(wanted.name, wanted.names, stuff, ids, own.ignored_ids, wanted.ignore_index)


def objects(entries, what: str = "it") -> list[dict]:
    """A JSON list of objects. Raises `ValueError` for anything else."""
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{what} is not a list of objects")
    return entries


def member(data, key: str) -> list[dict]:
    """The list of objects at a key of a JSON object. Raises `ValueError` for anything else."""
    return objects(data.get(key) if isinstance(data, dict) else None, repr(key))


def is_id(value) -> bool:
    """Whether a JSON value is a 64-bit integer, not a boolean."""
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def is_number(value) -> bool:
    """Whether a JSON value is a number in the range of a float, not a boolean."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def label_of(entry: dict, space: LabelSpace) -> int:
    """The label of an annotation's `category_id`."""
    category = entry.get("category_id")
    if not is_id(category) or category not in space.dataset_id_to_label:
        raise ValueError(f"category {category!r} is not a category of the data set")
    return space.dataset_id_to_label[category]
