"""Options → a trainer ready to run: data, classes, model, processor. What `eomt train` does, without a command line."""

import math
from dataclasses import replace

import torch
from datasets import Dataset, Value, concatenate_datasets
from transformers import set_seed

from ..configuration import TASK_ROWS, EoMTConfig, as_pair
from ..configuration.labels import LabelSpace
from ..image_processing import EoMTImageProcessor
from .arguments import EoMTTrainingArguments
from .callbacks import ReadableProgress
from .data.hold_out import FEWEST
from .data.load import load_data
from .data.readers import UnknownClass
from .data.transforms import EvaluationTransform, TrainTransform
from .initial_model import build_model, crop_size, starting_config, starting_task
from .options import DataOptions, ModelOptions, listed
from .own_data import Choice, facts_of, own_data_defaults
from .trainer import EoMTTrainer


def build_trainer(
    data: DataOptions, model: ModelOptions, args: EoMTTrainingArguments
) -> tuple[EoMTTrainer, list[Choice]]:
    """Everything a run needs, from what the user gave, the recipe or the data, in this order; and what the data gave.

    Raises:
        ValueError: for data, model and options that do not fit each other, before anything is trained.
    """
    start = starting_config(model, args)
    args.task = args.task or starting_task(start, model)
    wanted = None
    if start is not None and args.class_head == "keep":
        wanted = LabelSpace.from_config(start, model.checkpoint)
    try:
        train, space = load_split(data, args, "train", wanted)
    except UnknownClass as error:
        raise ValueError(f"{error}; to train other classes than the checkpoint's, give class_head new") from None
    train, space = with_more(train, data, args, space)
    args, choices = fill(data, model, args, train, start)
    validation = load_split(data, args, "val", space)[0] if args.eval_strategy != "no" else None
    if validation is not None:
        _require_apart(train, validation, data.data)
    set_seed(args.seed)  # the Trainer does so only when the model has its weights
    network = build_model(data, model, args, space, start)
    processor = EoMTImageProcessor(
        task=args.task, size=as_pair(network.config.image_size), stuff_label_ids=list(space.stuff_label_ids)
    )
    trainer = EoMTTrainer(
        network,
        args,
        train_dataset=train.with_transform(train_transform(data, args, space)),
        eval_dataset=validation and validation.with_transform(EvaluationTransform(space, task=args.task)),
        processing_class=processor,
    )
    if not args.disable_tqdm:
        ReadableProgress.replace_stock(trainer)
    return trainer, choices


def _require_apart(train: Dataset, validation: Dataset, source) -> None:
    """`ValueError` where images are trained and validated on; of fewer than five nothing can be held out."""
    both = {*train.with_format(None)["image"][:]} & {*validation.with_format(None)["image"][:]}
    if both and len(train) >= FEWEST:
        raise ValueError(
            f"{source}: {len(both)} images are in train and in val, such as {min(both)}; name the splits' folders "
            "train and val, or give --eval-strategy no"
        )


def fill(
    data: DataOptions, model: ModelOptions, args: EoMTTrainingArguments, train: Dataset, start: EoMTConfig | None
) -> tuple[EoMTTrainingArguments, list[Choice]]:
    """Without a recipe: fill in what was not given, from the training images → the arguments, and what was filled in.

    `data` and `model` are changed in place.
    """
    if args.recipe:
        return args, []
    given = {name for name, value in args.given.items() if value is not None}
    if args.max_steps > 0:
        given.add("num_train_epochs")
    shares = [args.given[name] for name in ("per_device_train_batch_size", "gradient_accumulation_steps")]
    batch_size = args.total_batch_size if all(shares) else args.given["total_batch_size"]
    if args.bf16 or args.fp16:
        given.add("precision")
    if given & {"learning_rate"}:  # one rate for all, as given
        given.add("backbone_learning_rate")
    begins = "scratch" if model.backbone_weights == "scratch" else "backbone"
    if start is not None:
        begins = "eomt"
    if args.device.type == "cpu":
        fast_bf16 = cpu_has_bf16() and not args.torch_compile
    else:
        fast_bf16 = args.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    side = max(as_pair(crop_size(data, args))) if data.image_size else None
    multiple = args.world_size * math.prod(share or 1 for share in shares)
    choices, values = [], {"task": args.task}
    for choice in own_data_defaults(facts_of(train), args.task, begins, side, fast_bf16, batch_size, multiple):
        group = next((group for group in (data, model) if hasattr(group, choice.name)), None)
        if group is None and choice.name not in given:
            values[choice.name] = choice.value
        elif group is not None and getattr(group, choice.name) is None:
            setattr(group, choice.name, choice.value)
        else:
            continue
        choices.append(choice)
    return args.filled(values), choices


def load_split(data: DataOptions, args: EoMTTrainingArguments, split: str, wanted: LabelSpace | None = None):
    """One split and its label space; with a recipe, the images its authors trained on.

    Images without segments are evaluated on in any case, as the official servers and `eomt evaluate` do.
    """
    recipe = args.recipe_values
    dataset = recipe.dataset if recipe and data.dataset == "auto" else data.dataset
    keep_empty = (recipe is None or split == "val") if data.keep_empty is None else data.keep_empty
    names, ignored = listed(data.class_names), listed(data.ignore_ids, int)
    return load_data(
        data.data,
        dataset,
        task=args.task,
        split=split,
        label_space=wanted,
        class_names=names or None,
        ignore_ids=ignored,
        keep_empty=keep_empty,
        automatic_split=args.eval_strategy != "no",
    )


def train_transform(data: DataOptions, args: EoMTTrainingArguments, space: LabelSpace) -> TrainTransform:
    """Augmentation as given, or the recipe's, or the task's."""
    recipe = args.recipe_values
    default = recipe.scale_range if recipe else TASK_ROWS[args.task].scale_range
    jitter = recipe.color_jitter if recipe else False
    return TrainTransform(
        space,
        task=args.task,
        size=as_pair(crop_size(data, args)),
        scale_range=_scale_range(data.scale_range) if data.scale_range else default,
        color_jitter=jitter if data.color_jitter is None else data.color_jitter,
        augment=data.augment,
    )


def with_more(
    train: Dataset, data: DataOptions, args: EoMTTrainingArguments, space: LabelSpace
) -> tuple[Dataset, LabelSpace]:
    """The training images and those of `more_data`, whose classes are matched by name; the ids of both."""
    parts = [train]
    for path in listed(data.more_data):
        more, theirs = load_data(path, task=args.task, label_space=space, keep_empty=data.keep_empty is not False)
        parts.append(more)
        if args.task == "semantic":  # pixels are looked up when they are read, all in one label space
            space = _with_values(space, theirs, path)
    if len({part.features["image_id"].dtype for part in parts}) > 1:
        parts = [part.cast_column("image_id", Value("string")) for part in parts]
    return concatenate_datasets(parts) if len(parts) > 1 else train, space


def _with_values(space: LabelSpace, more: LabelSpace, source: str) -> LabelSpace:
    """The label space, with the pixel values of more data of these classes; negative: of a class that it has not.

    Raises:
        ValueError: when a class has another value there.
    """
    for name, ours, theirs in zip(space.names, space.dataset_ids, more.dataset_ids):
        if ours != theirs and min(ours, theirs) >= 0:
            raise ValueError(
                f"{source}: its label images have {theirs} for class {name!r}, not {ours}; write them alike"
            )
    ids = tuple(map(max, space.dataset_ids, more.dataset_ids))
    return replace(space, dataset_ids=ids, ignored_ids=tuple({*space.ignored_ids, *more.ignored_ids}))


def _scale_range(text: str) -> tuple[float, float]:
    """ "0.5,2" → (lowest, highest) scale."""
    values = listed(text, float)
    if len(values) != 2 or not 0 < values[0] <= values[1] < math.inf:
        raise ValueError(f"--scale-range {text}: give LOW,HIGH, two positive numbers")
    return values[0], values[1]


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices itself (avx512_bf16, AMX); emulated it is slower than float32."""
    return any(getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
