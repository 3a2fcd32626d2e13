"""Defaults of a run without a recipe, from its training images and from what it starts with.

The paper's values are for runs of tens of thousands of steps on 100,000 images. These come from experiments on three
small data sets in `docs/results.md`. Given options are never changed.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from pycocotools import mask as coco_mask
from transformers.utils import logging

from ..configuration import TASK_ROWS, as_pair
from ..configuration.sizes import parse_size
from .arguments import EoMTTrainingArguments
from .data.images import size_of
from .data.polygons import to_rle
from .data.rows import LISTED, evenly_sampled
from .options import DataOptions, ModelOptions
from .start import Kind, Start

logger = logging.get_logger(__name__)

OBJECT = 24  # least side of the median object, pixels of the input: six cells of a mask
MIN_QUERIES, MAX_QUERIES = 50, 300
STEPS, MIN_EPOCHS, MAX_EPOCHS = 1000, 12, 100
BATCH, LARGE_DATA_BATCH, LARGE_DATA = 8, 16, 5000


@dataclass(frozen=True)
class DataFacts:
    """Properties of the training images that the defaults depend on."""

    images: int
    side: int
    "Median of the longer sides (pixels)."
    segments: tuple[int, int] | None
    "Median and maximum number of segments per image; None for label images, which are not read."
    object_side: float | None = None
    "Median over the segments of √area / longer side of the image; None for label images."


@dataclass(frozen=True)
class Choice:
    """A value for a field of the options, and the reason."""

    name: str
    value: Any
    reason: str


def data_facts(table: Dataset) -> DataFacts:
    """Facts of a table of `load_data`, from the headers of at most 200 images."""
    rows, sampled = table.with_format(None), evenly_sampled(table)
    sizes = [row["size"] or size_of(row["image"]) for row in sampled]
    areas = [
        (_area(segment, size), max(size))
        for row, size in zip(sampled, sizes)
        for segment in row["segments"]
        if not segment["iscrowd"]
    ]
    shares = [math.sqrt(area) / side for area, side in areas if area > 0]
    segments = None
    if rows[0]["layout"] in LISTED:
        counts = [sum(not segment["iscrowd"] for segment in image) for image in rows["segments"]]
        segments = (round(float(np.median(counts))), max(counts))
    object_side = float(np.median(shares)) if shares else None
    return DataFacts(len(rows), round(float(np.median([max(size) for size in sizes]))), segments, object_side)


def _area(segment: dict, size: tuple[int, int]) -> float:
    """Pixels of a segment; −1 in label images."""
    if segment["area"] >= 0 or not segment["shape"]:
        return segment["area"]
    return float(coco_mask.area(to_rle(json.loads(segment["shape"]), *size)))


def choose_defaults(
    facts: DataFacts, data: DataOptions, model: ModelOptions, args: EoMTTrainingArguments, start: Start
) -> tuple[DataOptions, ModelOptions, EoMTTrainingArguments, list[Choice]]:
    """Fill in the missing options. The last returned item lists them with reasons."""
    given = {name for name, value in (args.given | vars(data) | vars(model)).items() if value is not None}
    if args.max_steps > 0:
        given.add("num_train_epochs")
    if args.bf16 or args.fp16:
        given.add("precision")
    if "learning_rate" in given:  # one rate for all, as given
        given.add("backbone_learning_rate")
    shares = [args.given[name] for name in ("per_device_train_batch_size", "gradient_accumulation_steps")]
    if start.kind == "eomt" and facts.segments and facts.segments[1] > start.config.num_queries:
        logger.warning(
            f"{start.source} has {start.config.num_queries} queries, but the busiest image has {facts.segments[1]} "
            "segments; a model cannot find more segments than it has queries"
        )
    possible = default_choices(
        facts,
        args.task,
        start.kind,
        image_size=max(as_pair(crop_size(data, args))) if data.image_size else None,
        patch_size=max(as_pair(model.patch_size or getattr(start.config, "patch_size", 16))),
        fast_bf16=_has_fast_bf16(args),
        batch_size=args.total_batch_size if all(shares) else args.given["total_batch_size"],
        multiple=args.world_size * math.prod(share or 1 for share in shares),
    )
    choices = [choice for choice in possible if choice.name not in given]
    values = {choice.name: choice.value for choice in choices}
    data = replace(data, **{name: value for name, value in values.items() if hasattr(data, name)})
    model = replace(model, **{name: value for name, value in values.items() if hasattr(model, name)})
    others = {name: value for name, value in values.items() if name in args.given}
    return data, model, args.with_defaults({"task": args.task} | others), choices


def default_choices(
    facts: DataFacts,
    task: str,
    start: Kind,
    image_size: int | None = None,
    patch_size: int = 16,
    fast_bf16: bool = False,
    batch_size: int | None = None,
    multiple: int = 1,
) -> list[Choice]:
    """A value and a reason for each option that depends on the training images, the task or the initial weights.

    Args:
        image_size: longer side of the crop in pixels, if given.
        patch_size: the chosen crop is a multiple of two patches.
        fast_bf16: whether the device has instructions for bfloat16 matrices.
        batch_size: images per step, if given.
        multiple: divisor of the batch size: processes × images per device × accumulation.
    """
    choices = [*_input(facts, task, image_size, 2 * patch_size), *_queries(facts, task, start), *_rates(start)]
    choices += _length(facts, batch_size, multiple)
    if fast_bf16:
        reason = "this processor multiplies bfloat16 itself; on a CPU that took about half the time of fp32"
        choices.append(Choice("precision", "bf16", reason))
    return choices


def _input(facts: DataFacts, task: str, given: int | None, multiple: int) -> Iterator[Choice]:
    row = TASK_ROWS[task]
    wanted, about = multiple * round(facts.side / multiple), f"the images' longer side is {facts.side} pixels"
    enlarged = multiple * math.ceil(OBJECT / facts.object_side / multiple) if facts.object_side else 0
    if enlarged > wanted:
        about += f", at which half of the objects are smaller than {OBJECT} pixels"
        wanted = enlarged
    least, most = multiple * math.ceil(128 / multiple), row.image_size // multiple * multiple
    size = given or min(most, max(least, wanted))
    yield Choice("image_size", str(size), f"{about}; larger than {row.image_size} costs more than it gives")
    if size < most:
        yield Choice("scale_range", "0.5,1.5", "small images: enlarged and reduced less than the paper's")
    points = min(12544, max(1024, (size // 4) ** 2 // 2))
    yield Choice("train_num_points", points, f"half the cells of a mask of {size // 4} × {size // 4}")


def _queries(facts: DataFacts, task: str, start: Kind) -> Iterator[Choice]:
    if start == "eomt":
        return
    if task == "semantic" or facts.segments is None:
        count, reason = TASK_ROWS[task].num_queries, "the paper's for this task"
    else:
        most = facts.segments[1]
        wanted = 10 * math.ceil(1.5 * most / 10)
        count = min(MAX_QUERIES, max(MIN_QUERIES, wanted))
        reason = f"1.5 times the segments of the busiest image, {most}"
        if count != wanted:
            reason = f"{'at most' if count < wanted else 'at least'} {count}; the busiest image has {most} segments"
    yield Choice("num_queries", count, reason)


def _rates(start: Kind) -> Iterator[Choice]:
    if start == "eomt":
        yield Choice("learning_rate", 1e-4, "the paper's: only the class head may be new")
    elif start == "frozen":
        yield Choice("learning_rate", 5e-4, "the decoder is new, the backbone frozen")
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
    epochs = min(MAX_EPOCHS, max(MIN_EPOCHS, wanted))
    reason = f"about {STEPS} steps"
    if epochs != wanted:
        reason = f"{'at most' if epochs < wanted else 'at least'} {epochs}; {STEPS} steps would be {wanted}"
    yield Choice("num_train_epochs", float(epochs), reason)


def _has_fast_bf16(args: EoMTTrainingArguments) -> bool:
    """Whether the device has instructions for bfloat16 matrices; emulation is slower than float32."""
    if args.device.type == "cpu":
        return cpu_has_bf16() and not args.torch_compile
    return args.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def cpu_has_bf16() -> bool:
    """Whether this CPU has instructions for bfloat16 matrices (avx512_bf16, AMX)."""
    return any(getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))


def crop_size(data: DataOptions, args: EoMTTrainingArguments) -> int | tuple[int, int]:
    if data.image_size:
        return parse_size(data.image_size)
    if args.recipe_values:
        return args.recipe_values.image_size
    return TASK_ROWS[args.task].image_size
