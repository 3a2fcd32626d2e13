"""Rows: what a data set reader hands on, and the problems it found on the way.

Readers fill `Rows`; every malformed annotation is collected with its file and id, and all are reported at once before
training starts. The Arrow table holds paths and small annotations only.
"""

import json
import math
from dataclasses import dataclass, field

from datasets import Dataset, Features, List, Value

SEGMENT = {
    "id": Value("int64"),
    "label_id": Value("int64"),
    "iscrowd": Value("int64"),
    "area": Value("float64"),
    "shape": Value("large_string"),
}


_encode = json.JSONEncoder(separators=(",", ":")).encode


class DataProblems(ValueError):
    """Malformed annotations: `args` has one message each, the error's text the first three."""

    def __str__(self) -> str:
        more = f" (and {len(self.args) - 3} more problems)" if len(self.args) > 3 else ""
        return "; ".join(self.args[:3]) + more


@dataclass
class Rows:
    """Collects rows and problems of one data set; `table()` gives the `datasets.Dataset` or raises."""

    source: str
    layout: str
    rows: list[dict] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, image_id, file_name, image, annotation="", things="", segments=(), size=()) -> None:
        row = {"image_id": image_id, "file_name": file_name, "image": image, "annotation": annotation}
        row |= {"things": things, "segments": list(segments), "size": list(size), "layout": self.layout}
        self.rows.append(row)

    def problem(self, where: str, what: str) -> None:
        self.problems.append(f"{where}: {what}")

    def table(self) -> Dataset:
        """The data set; `DataProblems` where there are some, `ValueError` where there is no image at all."""
        if self.problems:
            raise DataProblems(*self.problems)
        if not self.rows:
            raise ValueError(
                f"{self.source}: the data set is empty; no image was found; docs/data-formats.md has the layouts"
            )
        kind = "int64" if isinstance(self.rows[0]["image_id"], int) else "string"
        texts = dict.fromkeys(("file_name", "image", "annotation", "things", "layout"), Value("string"))
        features = {"image_id": Value(kind), **texts, "segments": List(SEGMENT), "size": List(Value("int32"))}
        features = Features(features)
        columns = {name: [row[name] for row in self.rows] for name in features}
        return Dataset.from_dict(columns, features=features)


def segment(id: int, label_id: int, iscrowd: int = 0, area: float = -1.0, shape="") -> dict:
    """One entry of a row's `segments`; `area` −1: count the pixels."""
    text = shape if isinstance(shape, str) else _encode(shape)
    return {"id": id, "label_id": label_id, "iscrowd": int(iscrowd), "area": float(area), "shape": text}


def is_id(value) -> bool:
    """Whether a value of a json is an integer that 64 bits hold; true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def is_number(value) -> bool:
    """Whether a value of a json is a finite number that a float can hold."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False
