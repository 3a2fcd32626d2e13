"""`EoMTTrainingArguments`: transformers' TrainingArguments with the recipes of the paper.

Missing values (None) come from `recipe`, or without a recipe from the common values of the paper's runs.
"""

import dataclasses
import math
import os
from dataclasses import dataclass
from typing import get_args

import torch
from transformers import TrainingArguments

from ..configuration import TASK_ROWS, TASKS
from ..configuration.recipes import Recipe, annealing_steps, get_recipe
from .options import COMMON, Masking, RunOptions, StockOptions

REPLACED = {  # options of the stock Trainer without effect on EoMT's schedule and loss, and what to use instead
    "lr_scheduler_type": "the schedule is warm-up and polynomial decay of power 0.9",
    "lr_scheduler_kwargs": "the schedule is set by head_warmup_steps and backbone_warmup_steps",
    "warmup_steps": "heads and backbone warm up one after the other: head_warmup_steps and backbone_warmup_steps",
    "warmup_ratio": "heads and backbone warm up one after the other: head_warmup_steps and backbone_warmup_steps",
    "label_smoothing_factor": "EoMT's loss has no label smoothing",
}
ABOVE_ZERO = (
    "learning_rate", "backbone_learning_rate", "num_train_epochs", "total_batch_size", "per_device_train_batch_size",
    "gradient_accumulation_steps", "lora", "early_stopping", "cached_crops",
)  # fmt: skip
FULL_WARMUP_STEPS = 15_000  # least length of runs with the paper's warm-up (its shortest run: 19,902 steps)
DEFAULT_EPOCHS = 12
DEFAULT_TOTAL_BATCH_SIZE, MAX_DEVICE_BATCH = 16, 4  # the authors': 4 GPUs with 4 images each
LOGS, EVALUATIONS = 50, 10  # per run without a recipe
RECIPE_LOGGING_STEPS = 20


@dataclass
class EoMTTrainingArguments(RunOptions, TrainingArguments):
    """Arguments of `EoMTTrainer`: `RunOptions`, and every other field of `TrainingArguments`.

    Raises:
        ValueError: on construction, when a value is out of range or the batch sizes do not fit each other.
    """

    def __post_init__(self):
        self.given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.init}
        self._check()
        self._fill_from_recipe()
        self._fit_batches()
        self._choose_precision()
        self._keep_best()
        super().__post_init__()
        self._require_one_group()

    def with_defaults(self, defaults: dict) -> "EoMTTrainingArguments":
        """These arguments with other values for the options that were not given."""
        return type(self)(**(self.given | {n: value for n, value in defaults.items() if self.given[n] is None}))

    @property
    def recipe_values(self) -> Recipe | None:
        return get_recipe(self.recipe) if self.recipe else None

    @property
    def poly_power(self) -> float:
        """Power of the decay of learning rates and mask probabilities."""
        return self._common("poly_power")

    def _common(self, name: str):
        """The recipe's value of a field, or the common value of all recipes."""
        return getattr(self.recipe_values, name) if self.recipe else COMMON[name]

    def warmup(self, total_steps: int) -> tuple[int, int]:
        """Warm-up steps of heads and backbone: as given, else the recipe's, scaled down for short runs."""
        shrink = min(1.0, total_steps / FULL_WARMUP_STEPS)
        default = [round(steps * shrink) for steps in self._common("warmup_steps")]
        given = (self.head_warmup_steps, self.backbone_warmup_steps)
        return tuple(standard if value is None else value for value, standard in zip(given, default))

    def annealing(self, total_steps: int, num_blocks: int) -> tuple[list[float], list[float]]:
        """Annealing steps (starts, ends) of the masked blocks, by the recipe or the common rule.

        Constant masks start at infinity; without masks, annealing ends at step 0.
        """
        if self.masking == "never":
            return [0] * num_blocks, [0] * num_blocks
        if self.masking != "annealed":
            return [math.inf] * num_blocks, [math.inf] * num_blocks
        if self.recipe:
            return dataclasses.replace(self.recipe_values, num_blocks=num_blocks).annealing_steps(total_steps)
        return annealing_steps(total_steps, num_blocks)

    @property
    def keeps_best(self) -> bool:
        """Whether the checkpoint with the best evaluation is kept."""
        return self.load_best_model_at_end or _plain(self.save_strategy) == "best"

    def count_steps(self, total_steps: int) -> None:
        """Convert intervals of logs, evaluations and saves from shares of the run to steps."""
        for name in ("logging_steps", "eval_steps", "save_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                setattr(self, name, math.ceil(total_steps * value))

    def _check(self) -> None:
        for name, choices in (("task", (None, *TASKS)), ("masking", get_args(Masking))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose from {', '.join(c for c in choices if c)}")
        for name in ABOVE_ZERO:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}; it must be above 0")
        for name, instead in REPLACED.items():
            value, default = getattr(self, name, None), getattr(type(self), name, None)  # the default of the dataclass
            value = _plain(value)
            if value and value != default:
                raise ValueError(f"{name} is {value!r}, which would have no effect; {instead}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema is {self.ema}; give a decay between 0 and 1, for example 0.999")
        if self.early_stopping and _plain(self.eval_strategy) == "no":
            raise ValueError("early_stopping is given, but eval_strategy is no; it needs evaluations")

    def _fill_from_recipe(self) -> None:
        recipe = self.recipe_values
        self.task = self.task or (recipe.task if recipe else None)
        for name in ("learning_rate", "llrd", "llrd_l2_enabled"):
            if getattr(self, name) is None:
                setattr(self, name, self._common(name))
        self.num_train_epochs = self.num_train_epochs or float(recipe.epochs if recipe else DEFAULT_EPOCHS)
        self.label_names = self.label_names or ["mask_labels", "class_labels"]
        if self.dataloader_drop_last is None:
            self.dataloader_drop_last = recipe is not None
        if self.data_seed is None:
            self.data_seed = self.seed

    def _fit_batches(self) -> None:
        """Make total_batch_size = per_device_train_batch_size × gradient_accumulation_steps × processes hold."""
        processes = int(os.environ.get("WORLD_SIZE", 1))
        device, accumulation = self.per_device_train_batch_size, self.gradient_accumulation_steps
        total = self.total_batch_size
        if total is None and accumulation is None:
            if self.recipe:
                total = self.recipe_values.batch_size
            elif device is None:
                total = processes * math.ceil(DEFAULT_TOTAL_BATCH_SIZE / processes)
        if total is None:
            device, accumulation = device or MAX_DEVICE_BATCH, accumulation or 1
            total = device * accumulation * processes
        if device is None:
            share = max(1, total // (processes * (accumulation or 1)))
            fitting = [n for n in range(1, MAX_DEVICE_BATCH + 1) if share % n == 0]
            device = share if accumulation else max(fitting)
        accumulation = accumulation or max(1, total // (device * processes))
        if device * accumulation * processes != total:
            raise ValueError(
                f"total_batch_size {total} is not per_device_train_batch_size {device} × gradient_accumulation_steps "
                f"{accumulation} × {processes} processes; change one of them"
            )
        self.per_device_train_batch_size, self.gradient_accumulation_steps = device, accumulation
        self.total_batch_size = total

    def _choose_precision(self) -> None:
        if not torch.accelerator.is_available():  # use_cpu lets processes of torchrun form a group, and allows bf16
            self.use_cpu = True
        self.dataloader_pin_memory = self.dataloader_pin_memory and torch.cuda.is_available()
        if self.precision is None and not self.fp16 and not self.bf16 and self.recipe:
            on_gpu = torch.cuda.is_available() and not self.use_cpu
            self.precision = self.recipe_values.precision if on_gpu else "fp32"
        if self.precision is not None:
            self.fp16, self.bf16 = self.precision == "fp16", self.precision == "bf16"

    def _keep_best(self) -> None:
        if self.early_stopping:  # the best weights are loaded at the end, so each evaluation needs a checkpoint
            self.load_best_model_at_end = True
            self.save_strategy, self.save_steps = self.eval_strategy, self.eval_steps or self.logging_steps
        if self.metric_for_best_model is None and self.keeps_best:
            self.metric_for_best_model = TASK_ROWS[self.task].metric_key if self.task else "loss"

    def _require_one_group(self) -> None:
        processes = int(os.environ.get("WORLD_SIZE", 1))
        if processes != self.world_size:
            raise ValueError(
                f"WORLD_SIZE is {processes}, but the group has {self.world_size} processes: they would train "
                "separately in one folder; start them with torchrun, or unset WORLD_SIZE"
            )
        if self.n_gpu > 1:
            raise ValueError(
                f"{self.n_gpu} GPUs are visible to one process; start a process for each (torchrun --nproc_per_node "
                f"{self.n_gpu} --no-python eomt train …), or set CUDA_VISIBLE_DEVICES to one"
            )


def command_arguments(run: RunOptions, stock: StockOptions, name: str, **others) -> EoMTTrainingArguments:
    """Arguments of `eomt train` from its options, with default intervals of evaluations, saves and logs.

    Args:
        name: name of the data, for the output folder.
        others: further fields of `TrainingArguments`.
    """
    values = {"disable_tqdm": False} | vars(run) | vars(stock) | others  # by default it would follow the level of logs
    if not stock.gradient_checkpointing:  # transformers warns about any value
        del values["gradient_checkpointing"]
    recipe = get_recipe(run.recipe) if run.recipe else None
    if stock.output_dir is None:
        values["output_dir"] = f"runs/{run.recipe or name}"
    share = 1 / EVALUATIONS
    if recipe:
        share = recipe.evaluation_epochs / (run.num_train_epochs or recipe.epochs)
        share = share if share < 1 else 0.999
    if stock.eval_steps is None:
        values["eval_steps"] = share
    if stock.save_steps is None:
        values["save_steps"] = values["eval_steps"]
    if stock.logging_steps is None:
        values["logging_steps"] = RECIPE_LOGGING_STEPS if recipe else 1 / LOGS
    return EoMTTrainingArguments(**values)


def _plain(value):
    """The value of an enumeration member; other values unchanged."""
    return getattr(value, "value", value)
