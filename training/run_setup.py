"""Options → a trainer ready to run: data, classes, model, processor. What `eomt train` does, without a command line."""

import math

from transformers import set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from ..configuration import TASK_ROWS, EoMTConfig, as_pair
from ..configuration.labels import LabelSpace
from ..image_processing import EoMTImageProcessor
from .arguments import EoMTTrainingArguments
from .callbacks.progress import ReadableProgress
from .data.load import load_data
from .data.transforms import EvaluationTransform, TrainTransform
from .initial_model import build_model, crop_size, starting_config, starting_task
from .options import DataOptions, ModelOptions, listed
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


def _scale_range(text: str) -> tuple[float, float]:
    """ "0.5,2" → (lowest, highest) scale."""
    values = listed(text, float)
    if len(values) != 2 or not 0 < values[0] <= values[1] < math.inf:
        raise ValueError(f"--scale-range {text}: give LOW,HIGH, two positive numbers")
    return values[0], values[1]


def _processor_size(config: EoMTConfig) -> dict[str, int] | int:
    height, width = as_pair(config.image_size)
    return height if height == width else {"height": height, "width": width}
