"""The options of `eomt train`: the data, the model, the run. Free of torch, so that `--help` is quick.

The docstring under a field is its help text. None stands for the recipe's value; without a recipe, for a value chosen
from the data (defaults.py) or the common value of the paper's runs (arguments.py).
"""

import dataclasses
import os
from dataclasses import dataclass, field
from typing import Annotated, Literal

from cyclopts import Parameter

from ..configuration.recipes import Recipe

TaskName = Literal["panoptic", "instance", "semantic"]
Masking = Literal["annealed", "always", "switched-off", "never"]
COMMON = {field.name: field.default for field in dataclasses.fields(Recipe)}  # common values of all recipes


def usable_cores() -> int:
    """Number of processes for reading images: the usable cores, at most 4."""
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return min(4, len(usable))


@dataclass(kw_only=True)
class DataOptions:
    """The data set and its augmentation."""

    data: str
    """Folder of the data set, or of its official zips. Formats: docs/data-formats.md."""
    more_data: str | None = None
    """Data sets of the same classes, separated by commas; their train splits are added. Folders of eomt predict are
    data sets, too."""
    score_floor: float = 0.0
    """Least score of segments in --more-data, for predictions."""
    dataset: str = "auto"
    """Format of the data; auto detects it."""
    class_names: str | None = None
    """Names of the values 0, 1, … of label PNGs, separated by commas."""
    ignore_ids: str | None = None
    """Values of label PNGs to ignore, separated by commas; 255 is always ignored."""
    crowds_as_instances: bool = False
    """Ignore iscrowd of COCO instances; CVAT sets it on every exported mask."""
    keep_empty: bool | None = None
    """Keep images without segments; on by default, but off for training with a recipe, as in the paper."""
    image_size: str | None = None
    """Training crop: a side in pixels, or HEIGHTxWIDTH. By default the longer side of the images, larger for small
    objects, at most 640 (semantic: 512)."""
    scale_range: str | None = None
    """Scale jitter LOW,HIGH relative to the crop. By default 0.1,2.0 (semantic: 0.5,2.0), or 0.5,1.5 for small
    images."""
    color_jitter: bool | None = None
    """Jitter brightness, contrast, saturation and hue; off by default."""
    augment: bool = True
    """Flip, scale and crop at random. Without it, images are only resized and padded, for overfitting tests."""
    check: bool = False
    """Read every image, print statistics and draw augmented samples, without training."""


@dataclass(kw_only=True)
class ModelOptions:
    """The model to start from."""

    architecture: Literal["eomt", "pmt"] | None = None
    """eomt, or pmt: a decoder on a frozen backbone (docs/pmt.md); by default that of the recipe or the checkpoint, else
    eomt."""
    backbone: str | None = None
    """Pre-trained ViT by its name in timm or on the hub, or small, base, large or giant for DINOv2 with registers;
    base by default."""
    backbone_weights: str | None = None
    """File or folder with the weights of the backbone, or scratch; downloaded by default."""
    checkpoint: str | None = None
    """EoMT to start from: a folder or hub name (save_pretrained), or an authors' .bin or .ckpt."""
    class_head: Literal["keep", "new"] = "keep"
    """new: initialize the class head at random, to fine-tune a checkpoint on other classes."""
    step: Literal[0, 1, 2, 3] | None = None
    """Train a step of the paper's ladder instead of EoMT: 0 (ViT-Adapter + Mask2Former), 1, 2 or 3 (Section 3.2)."""
    num_queries: int | None = None
    """Number of queries; by default 1.5 times the segments of the busiest image, 100 for semantic segmentation."""
    num_blocks: int | None = None
    """Number of last blocks with queries; by default 3 (S, B), 4 (L), 5 (g), 6 with pmt."""
    patch_size: int | None = None
    """Patch size in pixels; 16 by default."""
    num_channels: int | None = None
    """Channels of the images; 3 (RGB) by default, or those of the checkpoint. Others come from NPY and TIFF files: RGB
    kernels of a checkpoint or backbone are spread over them, and the images' mean and deviation are measured."""
    train_num_points: int | None = None
    """Points sampled per mask for the loss; by default half the cells of a mask, 12544 with a recipe."""
    hidden_size: int | None = None
    """Width, for a scaled model of the backbone's family; needs backbone_weights scratch."""
    num_hidden_layers: int | None = None
    """Number of blocks of a scaled model."""
    num_attention_heads: int | None = None
    """Number of attention heads of a scaled model."""

    def overrides(self) -> dict:
        """The given configuration fields."""
        others = ("architecture", "backbone", "backbone_weights", "checkpoint", "class_head", "step")
        return {name: value for name, value in vars(self).items() if value is not None and name not in others}


@dataclass(kw_only=True)
class RunOptions:
    """The fields of `EoMTTrainingArguments` that transformers does not have, or has with other defaults."""

    recipe: str | None = None
    """Run of the paper with the default values, for example coco_panoptic_eomt_large_640."""
    task: TaskName | None = None
    """The task of the recipe or else of the model by default."""
    num_train_epochs: Annotated[float | None, Parameter(alias="--epochs")] = None
    """Passes over the data; without a recipe 12, or more for few images."""
    total_batch_size: Annotated[int | None, Parameter(alias="--batch-size")] = None
    """Images per optimizer step over all processes, with gradient accumulation if needed. By default the recipe's 16;
    without a recipe 8, 16 for large data sets, or per_device_train_batch_size × processes if given."""
    per_device_train_batch_size: int | None = None
    """Images per process and forward pass; by default 4, or less if 4 does not divide the batch."""
    gradient_accumulation_steps: int | None = None
    """Batches per optimizer step; by default computed from total_batch_size."""
    learning_rate: Annotated[float | None, Parameter(alias="--lr")] = None
    """Learning rate of heads and last block; by default 1e-4, or 5e-4 for new heads."""
    backbone_learning_rate: float | None = None
    """Learning rate of the last block of the backbone; by default learning_rate, as in the paper, or 1e-4 for new
    heads."""
    llrd: float | None = None
    """Layer-wise learning rate decay from block to block; by default 0.8, or 1 from scratch."""
    llrd_l2_enabled: bool | None = None
    """Also apply the decay to the last blocks, which process the queries; on by default."""
    head_warmup_steps: int | None = None
    """Warm-up steps of the heads, with a frozen backbone; by default 500, less in runs of under 15,000 steps."""
    backbone_warmup_steps: int | None = None
    """Warm-up steps of the backbone after that; by default 1000, less in runs of under 15,000 steps."""
    weight_decay: float = COMMON["weight_decay"]
    """Weight decay of every parameter, including norms, biases and queries."""
    max_grad_norm: float = COMMON["max_grad_norm"]
    """Maximum global gradient norm."""
    masking: Masking = "annealed"
    """Masked attention (paper, Table 7). annealed: dropped block by block during training, none at inference. always:
    in training and at inference. switched-off: in training, but not at inference. never: no masked attention and only
    the last prediction supervised."""
    rope_augmentation: bool = False
    """DINOv3: rescale patch coordinates at random (pos_embed_rescale of the configuration)."""
    freeze_backbone: bool = False
    """Train only queries and heads."""
    cache_features: str | None = None
    """With architecture pmt: a folder for the features of the frozen backbone. They are computed once, for fixed crops
    of each image, and training does not run the backbone. See docs/pmt.md for when this pays."""
    cached_crops: int = 4
    """Crops per image in cache_features."""
    lora: int | None = None
    """Rank of trainable differences (LoRA) to the frozen matrices of the backbone; merged in the saved model. Needs
    peft."""
    ema: float | None = None
    """Decay of an average of the weights, for example 0.999. The average is evaluated and saved."""
    early_stopping: int | None = None
    """Stop after this number of evaluations without improvement, and load the best checkpoint. Evaluations before the
    end of mask annealing do not count."""
    precision: Literal["fp32", "bf16", "fp16"] | None = None
    """Autocast. By default the recipe's fp16 on a GPU; without a recipe bf16 if the processor supports it; else fp32.
    Sets bf16 and fp16."""
    evaluate_blocks: bool = False
    """Also evaluate the prediction before each masked block; needs a second pass."""
    seed: int = 0
    """Random seed of weights, data order, augmentation, mask annealing and sampled points."""
    dataloader_drop_last: bool | None = None
    """Drop the last incomplete step of an epoch; by default with a recipe only."""
    remove_unused_columns: Annotated[bool, Parameter(show=False)] = False
    """Must be false: the columns of the data are not the arguments of the model."""
    label_names: Annotated[list[str] | None, Parameter(show=False)] = None
    """mask_labels and class_labels by default."""
    logging_nan_inf_filter: Annotated[bool, Parameter(show=False)] = False
    """Must be false: a non-finite loss stops the run."""
    ddp_find_unused_parameters: Annotated[bool | None, Parameter(show=False)] = False
    """False, as every parameter has a gradient in every step."""
    ddp_broadcast_buffers: Annotated[bool | None, Parameter(show=False)] = False
    """False, as every process sets its own mask probabilities."""


@dataclass(kw_only=True)
class StockOptions:
    """The options of `TrainingArguments` in `eomt train --help`, with the defaults of the command."""

    output_dir: Annotated[str | None, Parameter(alias="--output")] = None
    """Folder of the run; by default runs/ and the name of the recipe or the data."""
    max_steps: int = -1
    """Optimizer steps, instead of num_train_epochs."""
    eval_strategy: Literal["no", "steps", "epoch"] = "steps"
    """When to evaluate."""
    eval_steps: float | None = None
    """Steps between evaluations, or a share of the run below 1; a tenth by default, with a recipe the authors'."""
    save_strategy: Literal["no", "steps", "epoch", "best"] = "steps"
    """When to write a checkpoint."""
    save_steps: float | None = None
    """Steps between checkpoints, or a share of the run below 1; by default as for evaluations."""
    save_total_limit: int | None = 2
    """Checkpoints to keep."""
    logging_steps: float | None = None
    """Steps between log entries, or a share of the run below 1; a fiftieth by default, 20 steps with a recipe."""
    per_device_eval_batch_size: int = 1
    """Images per process and forward pass in evaluation."""
    bf16: bool = False
    """bfloat16 autocast, the same as precision bf16."""
    fp16: bool = False
    """float16 autocast with loss scaling, the same as precision fp16."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, slower."""
    load_best_model_at_end: bool = False
    """Load the checkpoint of the best evaluation when training ends."""
    use_cpu: bool = False
    """Train on the CPU even if there is a GPU."""
    torch_compile: bool = False
    """Compile the model: slow start, faster steps."""
    report_to: str = "none"
    """none, all, or a logger such as wandb or tensorboard."""
    dataloader_num_workers: Annotated[int, Parameter(alias="--workers")] = field(default_factory=usable_cores)
    """Processes for reading images; by default one per core, at most 4."""


def listed(text: str | None, kind=str) -> list:
    """Parse "a, b" to ["a", "b"]."""
    if not text:
        return []
    try:
        return [kind(part.strip()) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{text!r} is not a list of numbers separated by commas") from None
