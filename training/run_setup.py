"""Options → a trainer ready to run: data, classes, model, processor. What `eomt train` does, without a command line."""

import dataclasses
from pathlib import Path

from transformers import set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from ..configuration import TASK_ROWS, EoMTConfig, as_pair
from ..configuration.labels import LabelSpace
from ..image_processing import EoMTImageProcessor
from .arguments import EoMTTrainingArguments
from .callbacks.progress import ReadableProgress
from .data.check import check_data, describe
from .data.load import load_data
from .data.transforms import EvaluationTransform, TrainTransform
from .initial_model import build_model, crop_size, starting_config, starting_task
from .options import DataOptions, ModelOptions, listed, pair
from .trainer import EoMTTrainer


def build_trainer(data: DataOptions, model: ModelOptions, args: EoMTTrainingArguments) -> EoMTTrainer:
    """Everything a run needs, from what the user gave, the recipe and the data, in this order.

    Raises:
        ValueError: for data, model and options that do not fit each other, before anything is trained.
    """
    start = starting_config(model, args)
    args.task = args.task or starting_task(start, model)
    wanted = LabelSpace.from_config(start) if start is not None and args.class_head == "keep" else None
    try:
        train, space = load_split(data, args, "train", wanted)
    except ValueError as error:
        if wanted is None:
            raise
        raise ValueError(f"{error}; to train other classes than the checkpoint's, give class_head new") from None
    validation = load_split(data, args, "val", space)[0] if args.eval_strategy != "no" else None
    set_seed(args.seed)  # the Trainer does so only when the model has its weights
    network = build_model(data, model, args, space, start)
    processor = EoMTImageProcessor(
        task=args.task,
        size=_processor_size(network.config),
        stuff_label_ids=list(space.stuff_label_ids),
    )
    trainer = EoMTTrainer(
        network,
        args,
        train_dataset=train.with_transform(train_transform(data, args, space)),
        eval_dataset=validation and validation.with_transform(EvaluationTransform(space, task=args.task)),
        processing_class=processor,
    )
    if not args.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(ReadableProgress())
    return trainer


def check(data: DataOptions, model: ModelOptions, args: EoMTTrainingArguments) -> tuple[str, bool]:
    """Read every image of both splits → (a report for people, whether all is readable); pictures go to output_dir."""
    args.task = args.task or starting_task(starting_config(model, args), model)
    splits = ("train", "val") if args.eval_strategy != "no" else ("train",)
    texts, good, space = [], True, None
    for split in splits:
        dataset, space = load_split(data, args, split, space)
        report = check_data(
            dataset,
            space,
            train_transform(data, args, space),
            Path(args.output_dir, f"check-{split}"),
            num_workers=args.dataloader_num_workers,
            seed=args.seed,
        )
        good = good and not report["unreadable"]
        texts.append(f"--- {split} ---\n{describe(report)}")
    return "\n".join(texts), good


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
        scale_range=pair(data.scale_range, float, ",") if data.scale_range else default,
        color_jitter=jitter if data.color_jitter is None else data.color_jitter,
        augment=data.augment,
    )


def _processor_size(config: EoMTConfig) -> dict[str, int] | int:
    height, width = as_pair(config.image_size)
    return height if height == width else {"height": height, "width": width}


def summary(trainer: EoMTTrainer) -> str:
    """What is about to be trained, for a person to check before the hours it takes."""
    args, config = trainer.args, trainer.model.config
    parameters = sum(p.numel() for p in trainer.model.parameters())
    per_epoch = len(trainer.train_dataset) // args.total_batch_size or 1
    steps = args.max_steps if args.max_steps > 0 else int(args.num_train_epochs * per_epoch)
    heads, backbone = args.warmup(steps)
    evaluated = len(trainer.eval_dataset) if trainer.eval_dataset is not None else "none"
    lines = [
        f"task       {config.task}, {config.num_labels} classes, {len(config.stuff_label_ids)} of them stuff",
        f"data       {len(trainer.train_dataset)} images to train on, {evaluated} to evaluate on",
        f"model      {config.model_type}, {parameters / 1e6:.1f}M parameters, input {config.image_size}, "
        f"{config.num_hidden_layers} blocks of width {config.hidden_size}",
        f"queries    {config.num_queries} in the last {config.num_blocks} blocks, masks {args.masking}",
        f"batches    {args.total_batch_size} images = {args.per_device_train_batch_size} × "
        f"{args.gradient_accumulation_steps} accumulated × {args.world_size} processes",
        f"schedule   about {steps} steps, rate {args.learning_rate:g} × {args.llrd:g} a block, "
        f"warm-up {heads} + {backbone} steps",
    ]
    if args.recipe_values:
        reported = args.recipe_values.reported
        lines.append(
            f"recipe     {args.recipe}: the authors report {reported.value} {reported.metric} ({reported.table})"
        )
    return "\n".join(lines)


def option_fields() -> set[str]:
    """Names of the options that are ours, for a help text without the hundred of the stock Trainer."""
    own = EoMTTrainingArguments.__annotations__
    return {f.name for kind in (DataOptions, ModelOptions) for f in dataclasses.fields(kind)} | set(own)
