"""The fields of `EoMTTrainingArguments` that are not transformers' own, without torch: `eomt train --help` reads them.

What is left out (None) is taken from `recipe`. Without a recipe `eomt train` chooses it from the data (own_data.py),
and Python takes what the paper's runs share.
"""

import dataclasses
from dataclasses import dataclass, field

from ..configuration.recipes import Recipe
from ..configuration.tasks import TASKS
from .options import option

MASKING = ("annealed", "always", "switched-off", "never")
FULL_WARMUP_STEPS = 15_000  # runs at least this long warm up as the paper's do (its shortest: 19,902 steps)
COMMON = {field.name: field.default for field in dataclasses.fields(Recipe)}  # what all recipes share


@dataclass
class RunOptions:
    """What a run is, beside its data and model."""

    recipe: str | None = option(
        "Name of a run of the paper whose values are the defaults, such as coco_panoptic_eomt_large_640."
    )
    task: str | None = option(f"{', '.join(TASKS)}; default: the recipe's, else the model's.")
    learning_rate: float | None = option(
        "Learning rate of heads and last block; default: the recipe's, else 1e-4, or "
        "5e-4 where heads are new (eomt train)."
    )
    backbone_learning_rate: float | None = option(
        "Learning rate of the backbone's last block; default: learning_rate, as in the paper; without a "
        "recipe 1e-4 where the heads are new (eomt train)."
    )
    num_train_epochs: float | None = option(
        "Passes over the data; default: the recipe's, else 12, or more for few images (eomt train)."
    )
    total_batch_size: int | None = option(
        "Images per optimizer step over all processes, kept by gradient accumulation whatever their number; "
        "default: the recipe's 16; without a recipe 8, or 16 for many images (eomt train), or "
        "per_device_train_batch_size × processes where that is given."
    )
    per_device_train_batch_size: int | None = option(
        "Images per process and forward pass; default: 4, or less where 4 does not divide the batch."
    )
    gradient_accumulation_steps: int | None = option(
        "Batches per optimizer step; default: what makes up total_batch_size."
    )
    weight_decay: float = option(
        "Weight decay of every parameter, including norms, biases and queries.", COMMON["weight_decay"]
    )
    max_grad_norm: float = option("Maximum global gradient norm.", COMMON["max_grad_norm"])
    llrd: float | None = option(
        "Layer-wise learning rate decay factor from block to block; default: the recipe's, else 0.8; 1 from "
        "scratch (eomt train)."
    )
    llrd_l2_enabled: bool | None = option(
        "Apply the decay to the last blocks, which process the queries, too; default: the recipe's, else true."
    )
    head_warmup_steps: int | None = option(
        "Warm-up steps of the heads, during which the backbone is not trained; default: the "
        f"recipe's, else 500; scaled down for runs shorter than {FULL_WARMUP_STEPS} steps."
    )
    backbone_warmup_steps: int | None = option(
        "Warm-up steps of the backbone after that; default: the recipe's, else 1000; likewise scaled."
    )
    poly_power: float | None = option("Power of the learning rate's decay; default 0.9.")
    masking: str = option(
        "Masked attention (paper, Table 7). annealed: dropped block by block during training, none at inference. "
        "always: in training and at inference. switched-off: in training, but not at inference. "
        "never: no masked attention and only the last prediction supervised.",
        "annealed",
        choices=list(MASKING),
    )
    annealing_start_steps: list[int] | None = field(
        default=None,
        metadata={"help": "Step at which each masked block's annealing starts; default: from the run's length."},
    )
    annealing_end_steps: list[int] | None = field(
        default=None,
        metadata={"help": "Step at which each masked block's annealing ends; default: from the run's length."},
    )
    annealing_power: float | None = option("Power of the mask probability's decay; default 0.9.")
    rope_augmentation: bool = option(
        "DINOv3: rescale patch coordinates at random, as the configuration's pos_embed_rescale says.", False
    )
    freeze_backbone: bool = option("Train only queries and heads.", False)
    lora: int | None = option(
        "Rank of trainable differences (LoRA) to the backbone's matrices, which stay as they are; merged in the saved "
        "model. Needs peft."
    )
    ema: float | None = option(
        "Decay of an average of the weights, such as 0.999, which is evaluated and saved in their place."
    )
    early_stopping: int | None = option(
        "Stop after so many evaluations in a row without a better one, and load the best checkpoint; evaluations "
        "before all masks are annealed away do not count."
    )
    class_head: str = option(
        "keep, or new: initialize the class head at random, to fine-tune on other classes.",
        "keep",
        choices=["keep", "new"],
    )
    precision: str | None = option(
        "fp32, bf16 or fp16 autocast; default: the recipe's fp16 on a GPU; without a recipe bf16 where the "
        "processor multiplies it itself (eomt train); else fp32. Sets bf16 and fp16.",
        choices=["fp32", "bf16", "fp16"],
    )
    evaluate_blocks: bool = option("Also evaluate the prediction before each masked block; needs a second pass.", False)
    seed: int = option("Random seed of weights, data order, augmentation, mask annealing and sampled points.", 0)
    remove_unused_columns: bool = option("Must be false: the data's columns are not the model's arguments.", False)
    label_names: list[str] | None = field(default=None, metadata={"help": "Default: mask_labels and class_labels."})
    dataloader_drop_last: bool | None = option("Drop an epoch's last incomplete batch; default: true with a recipe.")
    logging_nan_inf_filter: bool = option("Must be false: a non-finite loss stops the run.", False)
    ddp_find_unused_parameters: bool | None = option("Every parameter has a gradient in every step, so false.", False)
    ddp_broadcast_buffers: bool | None = option("Every process anneals by itself, so false.", False)


@dataclass
class StockOptions:
    """The options of `TrainingArguments` that `eomt train --help` shows, with `eomt train`'s defaults."""

    output_dir: str | None = option("Folder of the run; default: runs/ and the recipe's or the data's name.")
    max_steps: int = option("Optimizer steps, in place of num_train_epochs.", -1)
    logging_steps: float = option("Steps between two lines of the log.", 20)
    eval_strategy: str = option("When to evaluate: no, steps or epoch.", "steps")
    eval_steps: float = option("Steps between evaluations, or below 1 their share of the run.", 0.1)
    save_steps: float = option("Steps between checkpoints, or below 1 their share of the run.", 0.1)
    bf16: bool = option("bfloat16 autocast, as precision bf16.", False)
    fp16: bool = option("float16 autocast with loss scaling, as precision fp16.", False)
    gradient_checkpointing: bool = option("Recompute activations in the backward pass: less memory, slower.", False)
    torch_compile: bool = option("Compile the model: slow start, faster steps.", False)
    report_to: str = option("none, all, or names of loggers such as wandb and tensorboard.", "none")
    dataloader_num_workers: int | None = option("Processes that read images; default: one a core, at most 4.")
