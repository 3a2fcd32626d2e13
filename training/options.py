"""What `eomt train` asks for: the data, the model, the run. Every option once, without torch.

The docstring under a field is its help. None stands for the recipe's value; without a recipe, for a value that is
chosen from the data (setup.py) or that the paper's runs share (arguments.py).
"""

import dataclasses
import os
from dataclasses import dataclass, field
from typing import Annotated, Literal

from cyclopts import Parameter

from ..configuration.recipes import Recipe

TaskName = Literal["panoptic", "instance", "semantic"]
Masking = Literal["annealed", "always", "switched-off", "never"]
COMMON = {field.name: field.default for field in dataclasses.fields(Recipe)}  # what all recipes share


def usable_cores() -> int:
    """Cores that this process may use, at most 4: processes that read images."""
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return min(4, len(usable))


@dataclass(kw_only=True)
class DataOptions:
    """The data set and its augmentation."""

    data: str
    """Folder of the data set, or of its official zips; formats: docs/data-formats.md."""
    more_data: str | None = None
    """Other data sets of these classes, separated by commas, whose train splits are added; what eomt predict wrote is
    one, too."""
    score_floor: float = 0.0
    """Predictions in --more-data: leave segments out that score less."""
    dataset: str = "auto"
    """Format of the data; auto detects it."""
    class_names: str | None = None
    """Names of the label png's values 0, 1, …, separated by commas."""
    ignore_ids: str | None = None
    """Label png values to ignore, separated by commas; 255 is always ignored."""
    crowds_as_instances: bool = False
    """Ignore iscrowd of COCO instances; CVAT sets it on every mask that it exports."""
    keep_empty: bool | None = None
    """Keep images without segments; by default yes, but not for training with a recipe, as in the paper."""
    image_size: str | None = None
    """Training crop: a side in pixels, or HEIGHTxWIDTH. By default the images' longer side, more where objects are
    small, at most 640 (semantic: 512)."""
    scale_range: str | None = None
    """Scale jitter LOW,HIGH relative to the crop. By default 0.1,2.0 (semantic: 0.5,2.0), or 0.5,1.5 for small
    images."""
    color_jitter: bool | None = None
    """Jitter brightness, contrast, saturation and hue; off by default."""
    augment: bool = True
    """Flip, scale and crop at random; without it images are only resized and padded, for overfitting tests."""
    check: bool = False
    """Read every image, print statistics and draw augmented samples, without training."""


@dataclass(kw_only=True)
class ModelOptions:
    """The model to start from."""

    backbone: str | None = None
    """Pre-trained ViT by timm's or the hub's name, or small, base, large or giant: DINOv2 with registers of that size.
    base by default."""
    backbone_weights: str | None = None
    """File or folder with the backbone's weights, or scratch; by default downloaded by the backbone's name."""
    checkpoint: str | None = None
    """EoMT to start from: a folder or hub name (save_pretrained), or an authors' .bin or .ckpt."""
    class_head: Literal["keep", "new"] = "keep"
    """new: initialize the class head at random, to fine-tune a checkpoint on other classes."""
    step: Literal[0, 1, 2, 3] | None = None
    """Train a step of the paper's ladder instead of EoMT: 0 (ViT-Adapter + Mask2Former), 1, 2 or 3 (Section 3.2)."""
    num_queries: int | None = None
    """By default by the segments of the fullest image; 100 for semantic segmentation."""
    num_blocks: int | None = None
    """Number of last blocks that process the queries; by default 3 (S, B), 4 (L), 5 (g)."""
    patch_size: int | None = None
    """Patch size in pixels; 16 by default."""
    train_num_points: int | None = None
    """Points sampled per mask for the loss; by default half the cells of a mask, 12544 with a recipe."""
    hidden_size: int | None = None
    """Width, for a scaled model of the backbone's family; needs backbone_weights scratch."""
    num_hidden_layers: int | None = None
    """Number of blocks of a scaled model."""
    num_attention_heads: int | None = None
    """Number of attention heads of a scaled model."""

    def overrides(self) -> dict:
        """The configuration fields that were given."""
        others = ("backbone", "backbone_weights", "checkpoint", "class_head", "step")
        return {name: value for name, value in vars(self).items() if value is not None and name not in others}


@dataclass(kw_only=True)
class RunOptions:
    """What a run is, beside its data and model: the fields of `EoMTTrainingArguments` that differ from the stock
    ones."""

    recipe: str | None = None
    """Run of the paper whose values are the defaults, such as coco_panoptic_eomt_large_640."""
    task: TaskName | None = None
    """By default the recipe's, else the model's."""
    num_train_epochs: Annotated[float | None, Parameter(alias="--epochs")] = None
    """Passes over the data; without a recipe 12, or more for few images."""
    total_batch_size: Annotated[int | None, Parameter(alias="--batch-size")] = None
    """Images per optimizer step over all processes, kept by gradient accumulation whatever their number. By default
    the recipe's 16; without a recipe 8, or 16 for many images, or per_device_train_batch_size × processes where that
    is given."""
    per_device_train_batch_size: int | None = None
    """Images per process and forward pass; by default 4, or less where 4 does not divide the batch."""
    gradient_accumulation_steps: int | None = None
    """Batches per optimizer step; by default what makes up total_batch_size."""
    learning_rate: Annotated[float | None, Parameter(alias="--lr")] = None
    """Learning rate of heads and last block; by default 1e-4, or 5e-4 where heads are new."""
    backbone_learning_rate: float | None = None
    """Learning rate of the backbone's last block; by default learning_rate, as in the paper, or 1e-4 where heads are
    new."""
    llrd: float | None = None
    """Layer-wise learning rate decay from block to block; by default 0.8, or 1 from scratch."""
    llrd_l2_enabled: bool | None = None
    """Apply the decay to the last blocks, which process the queries, too; yes by default."""
    head_warmup_steps: int | None = None
    """Warm-up steps of the heads, during which the backbone is not trained; by default 500, less in a run shorter than
    15,000 steps."""
    backbone_warmup_steps: int | None = None
    """Warm-up steps of the backbone after that; by default 1000, likewise."""
    weight_decay: float = COMMON["weight_decay"]
    """Weight decay of every parameter, including norms, biases and queries."""
    max_grad_norm: float = COMMON["max_grad_norm"]
    """Maximum global gradient norm."""
    masking: Masking = "annealed"
    """Masked attention (paper, Table 7). annealed: dropped block by block during training, none at inference. always:
    in training and at inference. switched-off: in training, but not at inference. never: no masked attention and only
    the last prediction supervised."""
    rope_augmentation: bool = False
    """DINOv3: rescale patch coordinates at random, as the configuration's pos_embed_rescale says."""
    freeze_backbone: bool = False
    """Train only queries and heads."""
    lora: int | None = None
    """Rank of trainable differences (LoRA) to the backbone's matrices, which stay as they are; merged in the saved
    model. Needs peft."""
    ema: float | None = None
    """Decay of an average of the weights, such as 0.999, which is evaluated and saved in their place."""
    early_stopping: int | None = None
    """Stop after so many evaluations in a row without a better one, and load the best checkpoint. Evaluations before
    all masks are annealed away do not count."""
    precision: Literal["fp32", "bf16", "fp16"] | None = None
    """Autocast; by default the recipe's fp16 on a GPU; without a recipe bf16 where the processor multiplies it itself;
    else fp32. Sets bf16 and fp16."""
    evaluate_blocks: bool = False
    """Also evaluate the prediction before each masked block; needs a second pass."""
    seed: int = 0
    """Random seed of weights, data order, augmentation, mask annealing and sampled points."""
    dataloader_drop_last: bool | None = None
    """Drop an epoch's last incomplete step; by default with a recipe only."""
    remove_unused_columns: Annotated[bool, Parameter(show=False)] = False
    """Has to be false: the data's columns are not the model's arguments."""
    label_names: Annotated[list[str] | None, Parameter(show=False)] = None
    """mask_labels and class_labels by default."""
    logging_nan_inf_filter: Annotated[bool, Parameter(show=False)] = False
    """Has to be false: a non-finite loss stops the run."""
    ddp_find_unused_parameters: Annotated[bool | None, Parameter(show=False)] = False
    """Every parameter has a gradient in every step, so false."""
    ddp_broadcast_buffers: Annotated[bool | None, Parameter(show=False)] = False
    """Every process anneals by itself, so false."""


@dataclass(kw_only=True)
class StockOptions:
    """The options of `TrainingArguments` that `eomt train --help` shows, with the command's defaults."""

    output_dir: Annotated[str | None, Parameter(alias="--output")] = None
    """Folder of the run; by default runs/ and the recipe's or the data's name."""
    max_steps: int = -1
    """Optimizer steps, in place of num_train_epochs."""
    eval_strategy: Literal["no", "steps", "epoch"] = "steps"
    """When to evaluate."""
    eval_steps: float | None = None
    """Steps between evaluations, or below 1 their share of the run; a tenth by default, with a recipe as authors."""
    save_strategy: Literal["no", "steps", "epoch", "best"] = "steps"
    """When to write a checkpoint."""
    save_steps: float | None = None
    """Steps between checkpoints, or below 1 their share of the run; by default as the evaluations."""
    save_total_limit: int | None = 2
    """Checkpoints to keep."""
    logging_steps: float | None = None
    """Steps between two lines of the log, or below 1 their share of the run; a fiftieth by default, 20 with a
    recipe."""
    per_device_eval_batch_size: int = 1
    """Images per process and forward pass in evaluation."""
    bf16: bool = False
    """bfloat16 autocast, as precision bf16."""
    fp16: bool = False
    """float16 autocast with loss scaling, as precision fp16."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, slower."""
    load_best_model_at_end: bool = False
    """Load the checkpoint of the best evaluation when training ends."""
    use_cpu: bool = False
    """Train on the CPU where there is a GPU, too."""
    torch_compile: bool = False
    """Compile the model: slow start, faster steps."""
    report_to: str = "none"
    """none, all, or a logger such as wandb and tensorboard."""
    dataloader_num_workers: Annotated[int, Parameter(alias="--workers")] = field(default_factory=usable_cores)
    """Processes that read images; one a core by default, at most 4."""


def listed(text: str | None, kind=str) -> list:
    """ "a, b" → ["a", "b"]."""
    if not text:
        return []
    try:
        return [kind(part.strip()) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{text!r} is not a list of numbers separated by commas") from None
