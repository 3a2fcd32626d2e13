"""Build a trainer from options: `eomt train` without the command line, step by step."""

import os
from dataclasses import replace

from datasets import Dataset, Value, concatenate_datasets
from transformers import set_seed

from ..configuration import TASK_ROWS, as_pair
from ..configuration.labels import LabelSpace
from .arguments import EoMTTrainingArguments
from .data.load import MIN_IMAGES_TO_SPLIT, PNG_LAYOUTS, load_data
from .data.rows import UnknownClass
from .data.samples import EvaluationTransform, TrainTransform
from .defaults import Choice, choose_defaults, crop_size, data_facts
from .options import DataOptions, ModelOptions, listed
from .start import Start, build_model, processor_of, starting_point
from .trainer import EoMTTrainer


def build_trainer(
    data: DataOptions, model: ModelOptions, args: EoMTTrainingArguments
) -> tuple[EoMTTrainer, list[Choice]]:
    """A trainer, and the defaults chosen from the data. Given options have priority, then the recipe, then the data.

    Raises:
        ValueError: for data, model and options that do not fit each other.
    """
    start = starting_point(model, args)
    args.task = args.task or start.task
    train, validation, labels = read_data(data, args, start)
    choices = []
    if not args.recipe:
        data, model, args, choices = choose_defaults(data_facts(train), data, model, args, start)
    set_seed(args.seed)  # the Trainer does so only after the initialization of the weights
    network = build_model(start, model, args, labels, crop_size(data, args))
    channels = network.config.num_channels
    if validation is not None:
        validation = validation.with_transform(EvaluationTransform(labels, task=args.task, num_channels=channels))
    trainer = EoMTTrainer(
        network,
        args,
        train_dataset=train.with_transform(train_transform(data, args, labels, channels)),
        eval_dataset=validation,
        processing_class=processor_of(start, network, train),
    )
    return trainer, choices


def read_data(
    data: DataOptions, args: EoMTTrainingArguments, start: Start
) -> tuple[Dataset, Dataset | None, LabelSpace]:
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
        return train, None, labels
    validation, _ = load_split(data, args, "val", labels)
    require_apart(train, validation, data.data)
    return train, validation, labels


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
        if more[0]["layout"] in PNG_LAYOUTS:  # label PNGs are read with the label space of the run
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
                f"{source}: label images have {theirs} for class {name!r}, not {ours}; use the same value in both, or "
                "give the label images as data and the other data set as more_data"
            )
    ids = tuple(map(max, labels.dataset_ids, more.dataset_ids))
    return replace(labels, dataset_ids=ids, ignored_ids=tuple({*labels.ignored_ids, *more.ignored_ids}))


def _places(images: Dataset) -> set:
    """Absolute paths of image files; members of archives and PIL images as they are."""
    places = images.with_format(None)["image"][:]
    return {place if not isinstance(place, str) or "://" in place else os.path.realpath(place) for place in places}


def require_apart(train: Dataset, validation: Dataset, source: str) -> None:
    """Raise `ValueError` for images in both splits, unless there are fewer than five: too few to hold some out."""
    both = _places(train) & _places(validation)
    if both and len(train) >= MIN_IMAGES_TO_SPLIT:
        raise ValueError(
            f"{source}: {len(both)} images are in train and in val, for example {min(both)}; name the folders of the "
            "splits train and val, or give eval_strategy no"
        )


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
