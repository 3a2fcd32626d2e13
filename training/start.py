"""The start of a run: a trained EoMT, a pre-trained backbone or random weights; the model and the processor from it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from datasets import Dataset
from transformers import AutoModelForUniversalSegmentation, ImageProcessingMixin
from transformers.utils import logging

from ..configuration import EoMTConfig, as_pair, find_backbone
from ..configuration.families import DINOV2_SIZES
from ..configuration.labels import LabelSpace
from ..configuration.recipes import RECIPES
from ..image_processing import EoMTImageProcessor
from ..modeling_eomt import EoMTForUniversalSegmentation, PMTForUniversalSegmentation, load_authors_checkpoint
from ..modeling_eomt.ladder import LadderConfig, LadderForUniversalSegmentation
from ..modeling_eomt.pretrained import load_config
from ..modeling_eomt.weights.state_dicts import require_all_weights
from .arguments import EoMTTrainingArguments
from .data.images import read_image
from .data.rows import evenly_sampled
from .options import ModelOptions

logger = logging.get_logger(__name__)

Kind = Literal["eomt", "backbone", "frozen", "scratch"]
"""A trained EoMT with its queries; pre-trained blocks with new queries and heads; a new decoder on a frozen backbone
(PMT); random weights."""
BY_SIZE = {size: f"vit_{size}_patch14_reg4_dinov2" for size in DINOV2_SIZES}
DEFAULT_BACKBONE = BY_SIZE["base"]
# Parameters that may have other shapes than in the checkpoint if the classes differ.
FRESH = ("class_predictor.", "heads.class_predictor.", "criterion.", "query.")
SCRATCH_LAYER_SCALE = 0.1  # with the 1e-5 of pre-training, the blocks would have no effect for thousands of steps
PIXEL_SETTINGS = ("image_mean", "image_std", "num_channels", "do_rescale", "rescale_factor", "do_normalize")


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


def build_model(
    start: Start,
    model: ModelOptions,
    args: EoMTTrainingArguments,
    labels: LabelSpace,
    image_size: int | tuple[int, int],
) -> EoMTForUniversalSegmentation:
    """The model of a run, with its initial weights and the classes of the data."""
    fields = {
        "task": args.task,
        "image_size": image_size,
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
    rows = evenly_sampled(table)
    moments = torch.zeros(2, channels, dtype=torch.float64)
    for row in rows:
        pixels = read_image(row["image"], None, channels).flatten(1).double() / 255
        moments += torch.stack([pixels.mean(1), pixels.square().mean(1)]) / len(rows)
    deviation = (moments[1] - moments[0].square()).clamp(min=1e-6).sqrt()
    return {"image_mean": moments[0].tolist(), "image_std": deviation.tolist(), "num_channels": channels}
