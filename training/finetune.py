"""Options → a trainer ready to run: data, classes, model, processor. What `eomt train` does, without a command line."""

from pathlib import Path

from transformers import AutoConfig, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.utils import logging

from ..configuration import EoMTConfig, as_pair
from ..configuration.labels import LabelSpace
from ..configuration.recipes import RECIPES
from ..image_processing import EoMTImageProcessor
from ..modeling_eomt import EoMTForUniversalSegmentation, load_authors_checkpoint
from ..modeling_eomt.state_dicts import require_all_weights
from .arguments import EoMTTrainingArguments
from .data.check import check_data, describe
from .data.load import load_data
from .data.transforms import EvaluationTransform, TrainTransform
from .options import DataOptions, ModelOptions, listed, pair
from .progress import ReadableProgress
from .trainer import EoMTTrainer

logger = logging.get_logger(__name__)

DEFAULT_BACKBONE = "vit_base_patch14_reg4_dinov2"
FRESH = ("class_predictor.", "criterion.", "query.")  # may differ in shape from a checkpoint whose classes differ
SCRATCH_LAYER_SCALE = 0.1  # pre-training starts at 1e-5; without it the blocks would do nothing for thousands of steps


def build_trainer(data: DataOptions, model: ModelOptions, args: EoMTTrainingArguments) -> EoMTTrainer:
    """Everything a run needs, from what the user gave, the recipe and the data, in this order.

    Raises:
        ValueError: for data, model and options that do not fit each other, before anything is trained.
    """
    start = _checkpoint_config(model, args)
    args.task = args.task or _task_of(start, model)
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
    args.task = args.task or _task_of(_checkpoint_config(model, args), model)
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
    default = recipe.scale_range if recipe else (0.5, 2.0) if args.task == "semantic" else (0.1, 2.0)
    jitter = recipe.color_jitter if recipe else False
    return TrainTransform(
        space,
        task=args.task,
        size=as_pair(crop_size(data, args)),
        scale_range=pair(data.scale_range, float, ",") if data.scale_range else default,
        color_jitter=jitter if data.color_jitter is None else data.color_jitter,
        augment=data.augment,
    )


def crop_size(data: DataOptions, args: EoMTTrainingArguments) -> int | tuple[int, int]:
    if data.image_size:
        size = pair(data.image_size)
        return size[0] if len(size) == 1 else size
    if args.recipe_values:
        return args.recipe_values.image_size
    return 512 if args.task == "semantic" else 640


def build_model(
    data: DataOptions, options: ModelOptions, args: EoMTTrainingArguments, space: LabelSpace, start: EoMTConfig | None
) -> EoMTForUniversalSegmentation:
    """From a checkpoint, from a pre-trained backbone or from scratch."""
    recipe = args.recipe_values
    labels = {
        "task": args.task,
        "image_size": crop_size(data, args),
        **space.config_fields,
        "stuff_label_ids": list(space.stuff_label_ids),
    }
    scratch = options.backbone_weights == "scratch"
    if start is not None:
        fields = {**start.to_dict(), **labels, **options.overrides()}
        return _from_checkpoint(options.checkpoint, type(start)(**fields), args.class_head == "keep")
    backbone = options.backbone or (recipe.backbone if recipe else DEFAULT_BACKBONE)
    overrides = options.overrides()
    if recipe and options.backbone is None:
        overrides = {"num_queries": recipe.num_queries, "num_blocks": recipe.num_blocks} | overrides
    if scratch:
        overrides.setdefault("layerscale_value", SCRATCH_LAYER_SCALE)
    config = EoMTConfig.for_backbone(backbone, **labels, **overrides)
    if scratch:
        return EoMTForUniversalSegmentation(config)
    source = options.backbone_weights or backbone
    logger.warning(f"backbone weights: {source}")  # a download may take its time
    try:
        return EoMTForUniversalSegmentation.from_pretrained_backbone(source, config)
    except Exception as error:  # what timm and the hub raise without a connection has no common class
        if isinstance(error, ValueError) or options.backbone_weights:
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"the weights of {source!r} could not be downloaded ({reason:.200}); give a file or folder that has them "
            "as --backbone-weights, or scratch"
        ) from None


def _checkpoint_config(options: ModelOptions, args: EoMTTrainingArguments) -> EoMTConfig | None:
    """Configuration of the checkpoint to start from; None without one. Fills in what the recipe starts from."""
    recipe = args.recipe_values
    if options.checkpoint is None and recipe and recipe.initial_checkpoint and options.backbone_weights is None:
        options.checkpoint = RECIPES[recipe.initial_checkpoint].checkpoint
        args.class_head = "new"  # other classes
    if options.checkpoint is None:
        return None
    authors = _is_authors_file(options.checkpoint)
    for name in ("backbone", "backbone_weights", "layerscale_value"):
        value = getattr(options, name)
        if value is not None and not (authors and name == "backbone"):
            raise ValueError(
                f"{name} is {value!r}, but it comes from the checkpoint {options.checkpoint}; leave it out"
            )
    if authors:
        name = options.backbone or (recipe.backbone if recipe else None)
        if name is None:
            raise ValueError(f"{options.checkpoint}: an authors' file does not name its backbone; give backbone")
        if args.class_head == "keep":
            raise ValueError(f"{options.checkpoint}: an authors' file does not name its classes; give class_head new")
        return EoMTConfig.for_backbone(name, **options.overrides())
    return AutoConfig.from_pretrained(options.checkpoint)


def _task_of(start: EoMTConfig | None, options: ModelOptions) -> str:
    """The checkpoint's task; an authors' file does not say its own."""
    return "panoptic" if start is None or _is_authors_file(options.checkpoint) else start.task


def _from_checkpoint(source: str, config: EoMTConfig, keep_head: bool) -> EoMTForUniversalSegmentation:
    if _is_authors_file(source):
        return load_authors_checkpoint(source, config, load_class_head=False)
    model, found = EoMTForUniversalSegmentation.from_pretrained(
        source, config=config, ignore_mismatched_sizes=not keep_head, output_loading_info=True
    )
    unfit = sorted(name for name, *_ in found["mismatched_keys"] if not name.startswith(FRESH))
    if unfit:
        others = f" and {len(unfit) - 1} more" if len(unfit) > 1 else ""
        raise ValueError(f"{source} does not fit the options given: {unfit[0]}{others} differ in shape")
    require_all_weights(source, model, found | {"mismatched_keys": ()})
    return model


def _is_authors_file(source: str) -> bool:
    return Path(source).suffix in (".bin", ".ckpt", ".pth")


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
