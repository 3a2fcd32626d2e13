"""The model a run starts from: a checkpoint, a pre-trained backbone or random weights."""

from pathlib import Path

from transformers import AutoConfig
from transformers.utils import logging

from ..configuration import TASK_ROWS, EoMTConfig
from ..configuration.families import SIZES
from ..configuration.labels import LabelSpace
from ..configuration.recipes import RECIPES
from ..configuration.sizes import parse_size
from ..modeling_eomt import EoMTForUniversalSegmentation, load_authors_checkpoint
from ..modeling_eomt.ladder import LadderConfig, LadderForUniversalSegmentation
from ..modeling_eomt.weights.state_dicts import require_all_weights
from .arguments import EoMTTrainingArguments
from .options import DataOptions, ModelOptions

logger = logging.get_logger(__name__)

BY_SIZE = {size: f"vit_{size}_patch14_reg4_dinov2" for size in SIZES}
DEFAULT_BACKBONE = BY_SIZE["base"]
# May differ in shape from a checkpoint whose classes differ.
FRESH = ("class_predictor.", "heads.class_predictor.", "criterion.", "query.")
SCRATCH_LAYER_SCALE = 0.1  # pre-training starts at 1e-5; without it the blocks would do nothing for thousands of steps


def load_config(name: str) -> EoMTConfig:
    """The configuration in a folder or on the hub; `ValueError` unless it is an EoMT's or a ladder model's."""
    config = AutoConfig.from_pretrained(name)
    if not isinstance(config, EoMTConfig):
        raise ValueError(f"{name} holds a {config.model_type!r} model, not an EoMT")
    return config


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
    backbone = BY_SIZE.get(backbone, backbone)
    overrides = options.overrides()
    if recipe and options.backbone is None:
        overrides = {"num_queries": recipe.num_queries, "num_blocks": recipe.num_blocks} | overrides
    model_class = EoMTForUniversalSegmentation
    if options.step is not None:
        model_class = LadderForUniversalSegmentation
        overrides["num_blocks"] = options.num_blocks or LadderConfig.num_blocks  # decoder layers, not the recipe's L2
        overrides["step"] = options.step
    if scratch:
        overrides.setdefault("layerscale_value", SCRATCH_LAYER_SCALE)
    config = model_class.config_class.for_backbone(backbone, **labels, **overrides)
    if scratch:
        return model_class(config)
    source = options.backbone_weights or backbone
    logger.warning(f"backbone weights: {source}")  # a download may take its time
    try:
        return model_class.from_pretrained_backbone(source, config)
    except Exception as error:  # what timm and the hub raise without a connection has no common class
        if isinstance(error, ValueError) or options.backbone_weights:
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"the weights of {source!r} could not be downloaded ({reason:.200}); give a file or folder that has them "
            "as --backbone-weights, or scratch"
        ) from None


def crop_size(data: DataOptions, args: EoMTTrainingArguments) -> int | tuple[int, int]:
    if data.image_size:
        return parse_size(data.image_size)
    if args.recipe_values:
        return args.recipe_values.image_size
    return TASK_ROWS[args.task].image_size


def starting_config(options: ModelOptions, args: EoMTTrainingArguments) -> EoMTConfig | None:
    """Configuration of the checkpoint to start from; None without one. Fills in what the recipe starts from."""
    recipe = args.recipe_values
    if options.checkpoint is None and recipe and recipe.initial_checkpoint and options.backbone_weights is None:
        options.checkpoint = RECIPES[recipe.initial_checkpoint].checkpoint
        args.class_head = "new"  # other classes
    if options.checkpoint is None:
        return None
    authors = _is_authors_file(options.checkpoint)
    for name in ("backbone", "backbone_weights", "layerscale_value", "step"):
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
    return load_config(options.checkpoint)


def starting_task(start: EoMTConfig | None, options: ModelOptions) -> str:
    """The checkpoint's task; an authors' file does not say its own."""
    return "panoptic" if start is None or _is_authors_file(options.checkpoint) else start.task


def _from_checkpoint(source: str, config: EoMTConfig, keep_head: bool) -> EoMTForUniversalSegmentation:
    if _is_authors_file(source):
        return load_authors_checkpoint(source, config, load_class_head=False)
    ladder = isinstance(config, LadderConfig)
    model_class = LadderForUniversalSegmentation if ladder else EoMTForUniversalSegmentation
    model, found = model_class.from_pretrained(
        source, config=config, ignore_mismatched_sizes=True, output_loading_info=True
    )
    unfit = sorted(name for name, *_ in found["mismatched_keys"] if keep_head or not name.startswith(FRESH))
    if unfit:
        others = f" and {len(unfit) - 1} more" if len(unfit) > 1 else ""
        hint = "; class_head new makes new ones" if all(name.startswith(FRESH) for name in unfit) else ""
        raise ValueError(f"{source} does not fit the options given: {unfit[0]}{others} differ in shape{hint}")
    require_all_weights(source, model, found | {"mismatched_keys": ()})
    return model


def _is_authors_file(source: str) -> bool:
    return Path(source).suffix in (".bin", ".ckpt", ".pth")
