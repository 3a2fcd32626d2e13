"""What `eomt train` takes for data without a recipe: every value from the data and from what the run starts with.

The paper's values are for runs of tens of thousands of steps on 100,000 images. `docs/results.md` has the experiments
on three small data sets of photographs that these are from. Whatever the user gives is left alone.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from datasets import Dataset
from pycocotools import mask as coco_mask

from ..configuration import TASK_ROWS
from .data.images import size_of
from .data.polygons import to_rle

Start = Literal["eomt", "backbone", "scratch"]
SAMPLED = 200  # images whose size and segments are looked up
PATCH = 16  # pixels of the input, a side
FEWEST_QUERIES, MOST_QUERIES = 50, 300
STEPS, FEWEST_EPOCHS, MOST_EPOCHS = 1000, 12, 100
BATCH, LARGE_DATA_BATCH, LARGE_DATA = 8, 16, 5000


@dataclass(frozen=True)
class DataFacts:
    """What the defaults depend on."""

    images: int
    side: int
    "Median of the images' longer sides, in pixels."
    segments: tuple[int, int] | None
    "Median and most segments an image; None where the labels are pictures, which would have to be read."
    object_side: float | None = None
    "Median over the segments of √area / the image's longer side; None where the labels are pictures."


@dataclass(frozen=True)
class Choice:
    """A value for a field of the options, and why."""

    name: str
    value: Any
    reason: str


def facts_of(table: Dataset) -> DataFacts:
    """Rows of `load_data` → facts; looks at 200 images at most, and opens no more than their headers."""
    rows = table.with_format(None)
    places = np.linspace(0, len(rows) - 1, min(SAMPLED, len(rows))).astype(int).tolist()
    sampled = rows.select(places)
    sizes = [row["size"] or size_of(row["image"], row["file_name"]) for row in sampled]
    areas = [
        (_area(segment, size), max(size))
        for row, size in zip(sampled, sizes)
        for segment in row["segments"]
        if not segment["iscrowd"]
    ]
    shares = [math.sqrt(area) / side for area, side in areas if area > 0]
    segments = None
    if rows[0]["layout"] in ("panoptic", "instance"):
        counts = [sum(not segment["iscrowd"] for segment in image) for image in rows["segments"]]
        segments = (round(float(np.median(counts))), max(counts))
    object_side = float(np.median(shares)) if shares else None
    return DataFacts(len(rows), round(float(np.median([max(size) for size in sizes]))), segments, object_side)


def _area(segment: dict, size: tuple[int, int]) -> float:
    """Pixels of a row's segment; −1 where they would have to be counted in a picture."""
    if segment["area"] >= 0 or not segment["shape"]:
        return segment["area"]
    return float(coco_mask.area(to_rle(json.loads(segment["shape"]), *size)))


def own_data_defaults(
    facts: DataFacts,
    task: str,
    start: Start,
    image_size: int | None = None,
    fast_bf16: bool = False,
    batch_size: int | None = None,
    multiple: int = 1,
) -> list[Choice]:
    """Facts of the training images, task and what the model starts from → a value and a reason for each option.

    start: "eomt", a trained EoMT, which keeps its queries; "backbone", pre-trained blocks with new queries and heads;
    "scratch". image_size: the longer side of the crop in pixels where it is given, which other values follow.
    fast_bf16: the run's device multiplies bfloat16 matrices itself. batch_size: images a step where they are given,
    which the length follows. multiple: what divides the batch (processes × what a device takes × what is accumulated).
    """
    choices = [*_input(facts, task, image_size), *_queries(facts, task, start), *_rates(start)]
    choices += _length(facts, batch_size, multiple)
    if fast_bf16:
        reason = "this processor multiplies bfloat16 itself; on a CPU that took about half the time of fp32"
        choices.append(Choice("precision", "bf16", reason))
    return choices


def _input(facts: DataFacts, task: str, given: int | None) -> Iterator[Choice]:
    row = TASK_ROWS[task]
    wanted, about = 32 * round(facts.side / 32), f"the images' longer side is {facts.side} pixels"
    if facts.object_side and (enlarged := 32 * math.ceil(PATCH / facts.object_side / 32)) > wanted:
        about += f", where half of the objects are smaller than a patch of {PATCH}"
        wanted = enlarged
    size = given or min(row.image_size, max(128, wanted))
    yield Choice("image_size", str(size), f"{about}; larger than {row.image_size} costs more than it gives")
    if size < row.image_size:
        yield Choice("scale_range", "0.5,1.5", "small images: enlarged and reduced less than the paper's")
    points = min(12544, max(1024, (size // 4) ** 2 // 2))
    yield Choice("train_num_points", points, f"half the cells of a mask of {size // 4} × {size // 4}")


def _queries(facts: DataFacts, task: str, start: Start) -> Iterator[Choice]:
    if start == "eomt":
        return
    if task == "semantic" or facts.segments is None:
        count, reason = TASK_ROWS[task].num_queries, "the paper's for this task"
    else:
        most = facts.segments[1]
        wanted = 10 * math.ceil(1.5 * most / 10)
        count = min(MOST_QUERIES, max(FEWEST_QUERIES, wanted))
        reason = f"half as many again as the most segments of an image, {most}"
        if count != wanted:
            reason = f"the {'most' if count < wanted else 'fewest'} chosen; the fullest image has {most} segments"
    yield Choice("num_queries", count, reason)


def _rates(start: Start) -> Iterator[Choice]:
    if start == "eomt":
        yield Choice("learning_rate", 1e-4, "the paper's: everything but the class head is trained already")
    elif start == "backbone":
        yield Choice("learning_rate", 5e-4, "queries and heads are new: five times the paper's rate")
        yield Choice("backbone_learning_rate", 1e-4, "the backbone is trained already: the paper's rate")
    else:
        yield Choice("learning_rate", 5e-4, "everything is new: five times the paper's rate")
        yield Choice("llrd", 1.0, "no block is trained already, so none needs protection")


def _length(facts: DataFacts, batch: int | None, multiple: int) -> Iterator[Choice]:
    if batch is None:
        batch = BATCH if facts.images < LARGE_DATA else LARGE_DATA_BATCH
        batch = multiple * math.ceil(min(batch, facts.images) / multiple)
        shared = f", in multiples of {multiple}" if multiple > 1 else ""
        yield Choice("total_batch_size", batch, f"{facts.images} images to train on{shared}")
    wanted = math.ceil(STEPS * batch / facts.images)
    epochs = min(MOST_EPOCHS, max(FEWEST_EPOCHS, wanted))
    reason = f"about {STEPS} steps"
    if epochs != wanted:
        reason = f"the {'most' if epochs < wanted else 'fewest'} chosen; {STEPS} steps would be {wanted}"
    yield Choice("num_train_epochs", float(epochs), reason)


def describe(choices: list[Choice]) -> str:
    """One line for each choice, with its reason."""
    width = max(len(choice.name) for choice in choices)
    lines = [f"  --{c.name.replace('_', '-'):<{width}} {c.value}: {c.reason}" for c in choices]
    return "\n".join(lines)
