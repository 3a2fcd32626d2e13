"""Build a trainer from options: `eomt train` without the command line, step by step.

The paper's values are for runs of tens of thousands of steps on 100,000 images. Without a recipe, defaults depend on
the data and on the initial weights. They come from experiments on three small data sets in `docs/results.md`. Given
options are never changed.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset, Value, concatenate_datasets
from pycocotools import mask as coco_mask
from transformers import AutoModelForUniversalSegmentation, ImageProcessingMixin, set_seed
from transformers.utils import logging

from ..configuration import TASK_ROWS, EoMTConfig, as_pair, find_backbone
from ..configuration.families import DINOV2_SIZES
from ..configuration.labels import LabelSpace
from ..configuration.recipes import RECIPES
from ..configuration.sizes import parse_size
from ..image_processing import EoMTImageProcessor
from ..modeling_eomt import EoMTForUniversalSegmentation, PMTForUniversalSegmentation, load_authors_checkpoint
from ..modeling_eomt.ladder import LadderConfig, LadderForUniversalSegmentation
from ..modeling_eomt.pretrained import load_config
from ..modeling_eomt.weights.state_dicts import require_all_weights
from .arguments import EoMTTrainingArguments
from .data.images import read_image, size_of
from .data.load import FEWEST, load_data
from .data.polygons import to_rle
from .data.rows import UnknownClass
from .data.samples import EvaluationTransform, TrainTransform
from .options import DataOptions, ModelOptions, listed
from .trainer import EoMTTrainer

logger = logging.get_logger(__name__)

Kind = Literal["eomt", "backbone", "frozen", "scratch"]
BY_SIZE = {size: f"vit_{size}_patch14_reg4_dinov2" for size in DINOV2_SIZES}
DEFAULT_BACKBONE = BY_SIZE["base"]
# Parameters that may have other shapes than in the checkpoint if the classes differ.
FRESH = ("class_predictor.", "heads.class_predictor.", "criterion.", "query.")
SCRATCH_LAYER_SCALE = 0.1  # with the 1e-5 of pre-training, the blocks would have no effect for thousands of steps
LISTED = ("panoptic", "instance")  # layouts of rows with listed segments
PIXEL_SETTINGS = ("image_mean", "image_std", "num_channels", "do_rescale", "rescale_factor", "do_normalize")
SAMPLED = 200  # images with measured sizes and segments
PATCH = 16  # side, pixels of the input
FEWEST_QUERIES, MOST_QUERIES = 50, 300
STEPS, FEWEST_EPOCHS, MOST_EPOCHS = 1000, 12, 100
BATCH, LARGE_DATA_BATCH, LARGE_DATA = 8, 16, 5000


@dataclass(frozen=True)
class Start:
    """Initial weights of a run."""

    kind: Kind
    source: str | None = None
    "Checkpoint of a trained EoMT; None for a backbone, frozen or not, and from scratch."
    config: EoMTConfig | None = None
    "Configuration of the checkpoint."
    new_head: bool = False
    "Whether the class head starts at random, for other classes than those of the checkpoint."
    backbone: str | None = None
    "Name of the backbone, if one is given instead of a checkpoint."

    @property
    def is_authors_file(self) -> bool:
        return self.source is not None and Path(self.source).suffix in (".bin", ".ckpt", ".pth")

    @property
    def task(self) -> str:
        """Task of the checkpoint; panoptic for authors' files, which do not name it."""
        return "panoptic" if self.config is None or self.is_authors_file else self.config.task


@dataclass(frozen=True)
class Data:
    """The splits of a run and their classes."""

    train: Dataset
    validation: Dataset | None
    labels: LabelSpace


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


def build_trainer(
    data: DataOptions, model: ModelOptions, args: EoMTTrainingArguments
) -> tuple[EoMTTrainer, list[Choice]]:
    """A trainer, and the defaults chosen from the data. Given options have priority, then the recipe, then the data.

    Raises:
        ValueError: for data, model and options that do not fit each other.
    """
    start = starting_point(model, args)
    args.task = args.task or start.task
    read = read_data(data, args, start)
    choices = []
    if not args.recipe:
        data, model, args, choices = choose_defaults(data_facts(read.train), data, model, args, start)
    set_seed(args.seed)  # the Trainer does so only after the initialization of the weights
    network = build_model(start, data, model, args, read.labels)
    channels = network.config.num_channels
    validation = read.validation
    if validation is not None:
        validation = validation.with_transform(EvaluationTransform(read.labels, task=args.task, num_channels=channels))
    trainer = EoMTTrainer(
        network,
        args,
        train_dataset=read.train.with_transform(train_transform(data, args, read.labels, channels)),
        eval_dataset=validation,
        processing_class=processor_of(start, network, read.train),
    )
    return trainer, choices


# --- initial weights --------------------------------------------------------------------------------------------------


def starting_point(model: ModelOptions, args: EoMTTrainingArguments) -> Start:
    """The given checkpoint, or that of the recipe, or a backbone, or random weights.

    Raises:
        ValueError: for options that the checkpoint determines.
    """
    recipe = args.recipe_values
    source, class_head = model.checkpoint, model.class_head
    if source is None and recipe and recipe.initial_checkpoint and model.backbone_weights is None:
        source = RECIPES[recipe.initial_checkpoint].checkpoint
        class_head = "new"  # other classes
    architecture = recipe.architecture if recipe else model.architecture or "eomt"
    if model.architecture not in (None, architecture):
        raise ValueError(f"architecture is {model.architecture}, but the recipe is of {architecture}; leave it out")
    if source is None:
        kind = "scratch" if model.backbone_weights == "scratch" else "backbone"
        if architecture == "pmt" and (kind == "scratch" or model.step is not None):
            raise ValueError("pmt freezes a pre-trained backbone; leave out step and backbone_weights scratch")
        if architecture == "pmt":
            kind = "frozen"
        return Start(kind, backbone=BY_SIZE.get(model.backbone, model.backbone))
    for name in ("architecture", "backbone", "backbone_weights", "step"):
        value = getattr(model, name)
        if value is not None and not (name == "backbone" and Start("eomt", source).is_authors_file):
            raise ValueError(f"{name} is {value!r}, but the checkpoint {source} determines it; leave it out")
    if Start("eomt", source).is_authors_file:
        name = model.backbone or (recipe.backbone if recipe else None)
        if name is None:
            raise ValueError(f"{source}: an authors' file does not name its backbone; give backbone")
        if class_head == "keep":
            raise ValueError(f"{source}: an authors' file does not name its classes; give class_head new")
        return Start("eomt", source, EoMTConfig.for_backbone(name, **model.overrides()), new_head=True)
    return Start("eomt", source, load_config(source), new_head=class_head == "new")


# --- the data ---------------------------------------------------------------------------------------------------------


def read_data(data: DataOptions, args: EoMTTrainingArguments, start: Start) -> Data:
    """Both splits and the classes: those of the checkpoint if its class head is kept, else those of the data.

    Raises:
        ValueError: for unreadable data, and for images in both splits.
    """
    wanted = None
    if start.config is not None and not start.new_head:
        wanted = LabelSpace.from_config(start.config, start.source)
    try:
        train, labels = load_split(data, args, "train", wanted)
    except UnknownClass as error:
        raise ValueError(f"{error}; to train other classes than those of the checkpoint, give class_head new") from None
    train, labels = with_more(train, data, args, labels)
    if args.eval_strategy == "no":
        return Data(train, None, labels)
    validation, _ = load_split(data, args, "val", labels)
    _require_apart(train, validation, data.data)
    return Data(train, validation, labels)


def load_split(data: DataOptions, args: EoMTTrainingArguments, split: str, wanted: LabelSpace | None = None):
    """One split and its label space. With a recipe, the training split has the authors' images.

    The validation split includes images without segments, as for the official servers and `eomt evaluate`.
    """
    recipe = args.recipe_values
    keep_empty = data.keep_empty
    if keep_empty is None:
        keep_empty = recipe is None or split == "val"
    return load_data(
        data.data,
        recipe.dataset if recipe and data.dataset == "auto" else data.dataset,
        task=args.task,
        split=split,
        label_space=wanted,
        class_names=listed(data.class_names) or None,
        ignore_ids=listed(data.ignore_ids, int),
        keep_empty=keep_empty,
        automatic_split=args.eval_strategy != "no",
        crowds_as_instances=data.crowds_as_instances,
    )


def with_more(
    train: Dataset, data: DataOptions, args: EoMTTrainingArguments, labels: LabelSpace
) -> tuple[Dataset, LabelSpace]:
    """Append the images of `more_data`, with classes matched by name. Returns the images and the label space."""
    parts = [train]
    for path in listed(data.more_data):
        more, theirs = load_data(
            path,
            task=args.task,
            label_space=labels,
            keep_empty=data.keep_empty is not False,
            crowds_as_instances=data.crowds_as_instances,
            score_floor=data.score_floor,
        )
        parts.append(more)
        if args.task == "semantic":  # pixels of all parts are read with one label space
            labels = _with_values(labels, theirs, path)
    if len(parts) == 1:
        return train, labels
    if len({part.features["image_id"].dtype for part in parts}) > 1:
        parts = [part.cast_column("image_id", Value("string")) for part in parts]
    return concatenate_datasets(parts), labels


def _with_values(labels: LabelSpace, more: LabelSpace, source: str) -> LabelSpace:
    """The label space with the pixel values of more data of these classes; values of missing classes are negative.

    Raises:
        ValueError: when a class has another value in that data.
    """
    for name, ours, theirs in zip(labels.names, labels.dataset_ids, more.dataset_ids):
        if ours != theirs and min(ours, theirs) >= 0:
            raise ValueError(
                f"{source}: label images have {theirs} for class {name!r}, not {ours}; use the same value in both"
            )
    ids = tuple(map(max, labels.dataset_ids, more.dataset_ids))
    return replace(labels, dataset_ids=ids, ignored_ids=tuple({*labels.ignored_ids, *more.ignored_ids}))


def _require_apart(train: Dataset, validation: Dataset, source: str) -> None:
    """`ValueError` for images in both splits, unless they are fewer than five: too few for held-out ones."""
    both = {*train.with_format(None)["image"][:]} & {*validation.with_format(None)["image"][:]}
    if both and len(train) >= FEWEST:
        raise ValueError(
            f"{source}: {len(both)} images are in train and in val, for example {min(both)}; name the folders of the "
            "splits train and val, or give eval_strategy no"
        )


# --- defaults from the data -------------------------------------------------------------------------------------------


def data_facts(table: Dataset) -> DataFacts:
    """Facts of a table of `load_data`, from the headers of at most 200 images."""
    rows = table.with_format(None)
    places = np.linspace(0, len(rows) - 1, min(SAMPLED, len(rows))).astype(int).tolist()
    sampled = rows.select(places)
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
    fast_bf16: bool = False,
    batch_size: int | None = None,
    multiple: int = 1,
) -> list[Choice]:
    """A value and a reason for each option that depends on the training images, the task or the initial weights.

    start: "eomt", a trained EoMT with its queries; "backbone", pre-trained blocks with new queries and heads; "frozen",
    a new decoder on a frozen backbone (PMT); or "scratch". image_size: longer side of the crop in pixels, if given.
    fast_bf16: whether the device has instructions for bfloat16 matrices. batch_size: images per step, if given.
    multiple: divisor of the batch size (processes × images per device × accumulation).
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


def _queries(facts: DataFacts, task: str, start: Kind) -> Iterator[Choice]:
    if start == "eomt":
        return
    if task == "semantic" or facts.segments is None:
        count, reason = TASK_ROWS[task].num_queries, "the paper's for this task"
    else:
        most = facts.segments[1]
        wanted = 10 * math.ceil(1.5 * most / 10)
        count = min(MOST_QUERIES, max(FEWEST_QUERIES, wanted))
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
    epochs = min(MOST_EPOCHS, max(FEWEST_EPOCHS, wanted))
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


# --- model, processor, augmentation -----------------------------------------------------------------------------------


def build_model(
    start: Start, data: DataOptions, model: ModelOptions, args: EoMTTrainingArguments, labels: LabelSpace
) -> EoMTForUniversalSegmentation:
    """The model of a run, with its initial weights and the classes of the data."""
    fields = {
        "task": args.task,
        "image_size": crop_size(data, args),
        **labels.config_fields,
        "stuff_label_ids": list(labels.stuff_label_ids),
    }
    if start.kind == "eomt":
        config = type(start.config)(**{**start.config.to_dict(), **fields, **model.overrides()})
        return _from_checkpoint(start, config)
    backbone, config, model_class = _new_config(fields, model, args, start.kind)
    if start.kind == "scratch":
        return model_class(config)
    source = model.backbone_weights or backbone
    logger.warning(f"backbone weights: {source}")  # a download can take minutes
    try:
        return model_class.from_pretrained_backbone(source, config)
    except Exception as error:  # timm and the hub have no common error for a missing connection
        if isinstance(error, ValueError) or model.backbone_weights:
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"the weights of {source!r} could not be downloaded ({reason:.200}); give a file or folder as "
            "backbone_weights, or scratch"
        ) from None


def _new_config(fields: dict, model: ModelOptions, args: EoMTTrainingArguments, kind: Kind):
    """Name of the backbone, configuration and class of a new model."""
    recipe, overrides = args.recipe_values, model.overrides()
    backbone = model.backbone or (recipe.backbone if recipe else DEFAULT_BACKBONE)
    backbone = BY_SIZE.get(backbone, backbone)
    if recipe and model.backbone is None:
        overrides = {"num_queries": recipe.num_queries, "num_blocks": recipe.num_blocks} | overrides
    if kind == "scratch":
        overrides["layerscale_value"] = SCRATCH_LAYER_SCALE
    model_class = EoMTForUniversalSegmentation
    if kind == "frozen":
        model_class = PMTForUniversalSegmentation
    if model.step is not None:
        model_class = LadderForUniversalSegmentation
        overrides["num_blocks"] = model.num_blocks or LadderConfig.num_blocks  # decoder layers instead of L2
        overrides["step"] = model.step
    return backbone, model_class.config_class.for_backbone(backbone, **fields, **overrides), model_class


def _from_checkpoint(start: Start, config: EoMTConfig) -> EoMTForUniversalSegmentation:
    if start.is_authors_file:
        model = load_authors_checkpoint(start.source, config, load_class_head=False)
        model.class_predictor.reset_parameters()
        return model
    model, found = AutoModelForUniversalSegmentation.from_pretrained(
        start.source, config=config, ignore_mismatched_sizes=True, output_loading_info=True
    )
    unfit = [name for name, *_ in found["mismatched_keys"] if not (start.new_head and name.startswith(FRESH))]
    if unfit:
        unfit.sort()
        others = f" and {len(unfit) - 1} more" if len(unfit) > 1 else ""
        hint = "; give class_head new" if all(name.startswith(FRESH) for name in unfit) else ""
        raise ValueError(f"{start.source} does not fit the given options: {unfit[0]}{others} differ in shape{hint}")
    require_all_weights(start.source, model, found | {"mismatched_keys": ()})
    if start.new_head:
        model.class_predictor.reset_parameters()  # PyTorch's default, as in the authors' code
    return model


def processor_of(
    start: Start, model: EoMTForUniversalSegmentation, images: Dataset | None = None
) -> EoMTImageProcessor:
    """The image processor of the model, with the normalization of the checkpoint or backbone, or else of ImageNet; for
    other channels than the checkpoint's, with mean and deviation of the training images."""
    config, own = model.config, {}
    if start.kind in ("backbone", "frozen") and start.backbone is not None:
        row = find_backbone(start.backbone)
        own = {"image_mean": row.pixel_mean, "image_std": row.pixel_std}
    if start.config is not None and not start.is_authors_file:
        try:
            own, _ = ImageProcessingMixin.get_image_processor_dict(start.source)
        except OSError:
            logger.warning(f"{start.source} has no processor; images are normalized by ImageNet's mean and deviation")
    pixels = {name: own[name] for name in PIXEL_SETTINGS if own.get(name) is not None}
    if own.get("num_channels", 3) != config.num_channels:
        pixels = {} if config.num_channels == 3 else channel_statistics(images, config.num_channels)
    return EoMTImageProcessor(
        task=config.task, size=as_pair(config.image_size), stuff_label_ids=list(config.stuff_label_ids), **pixels
    )


def channel_statistics(table: Dataset, channels: int) -> dict[str, list[float]]:
    """Mean and deviation of each channel, of values from 0 to 1, over at most 200 images."""
    rows = table.with_format(None)
    places = np.linspace(0, len(rows) - 1, min(SAMPLED, len(rows))).astype(int).tolist()
    moments = torch.zeros(2, channels, dtype=torch.float64)
    for row in rows.select(places):
        pixels = read_image(row["image"], None, channels).flatten(1).double() / 255
        moments += torch.stack([pixels.mean(1), pixels.square().mean(1)]) / len(places)
    deviation = (moments[1] - moments[0].square()).clamp(min=1e-6).sqrt()
    return {"image_mean": moments[0].tolist(), "image_std": deviation.tolist(), "num_channels": channels}


def crop_size(data: DataOptions, args: EoMTTrainingArguments) -> int | tuple[int, int]:
    if data.image_size:
        return parse_size(data.image_size)
    if args.recipe_values:
        return args.recipe_values.image_size
    return TASK_ROWS[args.task].image_size


def train_transform(
    data: DataOptions, args: EoMTTrainingArguments, labels: LabelSpace, num_channels: int = 3
) -> TrainTransform:
    """The given augmentation, or that of the recipe, or that of the task."""
    recipe = args.recipe_values
    default = recipe.scale_range if recipe else TASK_ROWS[args.task].scale_range
    jitter = recipe.color_jitter if recipe else False
    return TrainTransform(
        labels,
        task=args.task,
        size=as_pair(crop_size(data, args)),
        scale_range=tuple(listed(data.scale_range, float)) if data.scale_range else default,
        color_jitter=jitter if data.color_jitter is None else data.color_jitter,
        augment=data.augment,
        num_channels=num_channels,
    )
