"""`EoMTTrainingArguments`: defaults of the recipes, batch sizes, and errors."""

import pytest
from transformers import HfArgumentParser
from transformers.utils import logging

from eomt.configuration.recipes import RECIPES
from eomt.training import EoMTTrainingArguments
from eomt.training.arguments import command_arguments
from eomt.training.options import RunOptions, StockOptions


def arguments(tmp_path, **options):
    return EoMTTrainingArguments(str(tmp_path), use_cpu=True, report_to="none", **options)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_decide_the_defaults(tmp_path, name):
    recipe, args = RECIPES[name], arguments(tmp_path, recipe=name)
    same = ("task", "learning_rate", "llrd", "llrd_l2_enabled", "poly_power", "weight_decay", "max_grad_norm")
    for field in (*same, "adam_epsilon"):
        assert getattr(args, field) == getattr(recipe, field), field
    assert (args.num_train_epochs, args.total_batch_size) == (recipe.epochs, recipe.batch_size)
    assert (args.adam_beta1, args.adam_beta2) == recipe.adam_betas
    assert args.warmup(recipe.total_steps) == recipe.warmup_steps
    assert args.annealing(recipe.total_steps, recipe.num_blocks) == recipe.annealing_steps()
    assert args.per_device_train_batch_size * args.gradient_accumulation_steps == 16


def test_everything_can_be_overridden(tmp_path):
    options = {"learning_rate": 3e-4, "llrd": 1.0, "llrd_l2_enabled": False, "num_train_epochs": 2}
    options |= {"head_warmup_steps": 0, "weight_decay": 0.0, "max_grad_norm": 1.0}
    args = arguments(tmp_path, recipe="coco_panoptic_eomt_large_640", **options)
    assert {name: getattr(args, name) for name in options} == options
    assert args.warmup(88_692) == (0, 1000)
    assert args.warmup(1_500) == (0, 100)  # a tenth of 15,000 steps


@pytest.mark.parametrize(("processes", "options", "expected"), [  # expected: per device, accumulation, total
    (1, {}, (4, 4, 16)),
    (4, {}, (4, 1, 16)),
    (8, {}, (2, 1, 16)),
    (16, {}, (1, 1, 16)),
    (1, {"per_device_train_batch_size": 2}, (2, 8, 16)),
    (2, {"per_device_train_batch_size": 8}, (8, 1, 16)),
    (2, {"total_batch_size": 48}, (4, 6, 48)),
    (3, {"total_batch_size": 21}, (1, 7, 21)),
    (2, {"gradient_accumulation_steps": 2}, (4, 2, 16)),
    (3, {"recipe": None}, (3, 2, 18)),
    (3, {"recipe": None, "total_batch_size": 9}, (3, 1, 9)),
])  # fmt: skip
def test_total_batch_is_kept_on_any_number_of_processes(tmp_path, monkeypatch, processes, options, expected):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    args = object.__new__(EoMTTrainingArguments)  # the constructor would wait for a group of WORLD_SIZE processes
    unset = ("total_batch_size", "per_device_train_batch_size", "gradient_accumulation_steps")
    vars(args).update({"recipe": "coco_panoptic_eomt_large_640"} | dict.fromkeys(unset) | options)
    args._fit_batches()
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps, args.total_batch_size) == expected


def test_batches_without_a_recipe(tmp_path):
    assert arguments(tmp_path, per_device_train_batch_size=2).total_batch_size == 2  # as in the stock Trainer
    assert arguments(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=3).total_batch_size == 6
    assert arguments(tmp_path).total_batch_size == 16
    with pytest.raises(ValueError, match="total_batch_size 16"):
        arguments(tmp_path, total_batch_size=16, per_device_train_batch_size=3)


@pytest.mark.parametrize(("options", "value"), [
        ({"task": "depth"}, "depth"),
        ({"masking": "sometimes"}, "sometimes"),
        ({"recipe": "coco"}, "'coco'"),
        ({"learning_rate": -1.0}, r"learning_rate is -1\.0"),
        ({"lr_scheduler_type": "cosine"}, "cosine"),
        ({"warmup_steps": 100}, "warmup_steps is 100"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor"),
        ({"total_batch_size": 0}, "total_batch_size is 0"),
        ({"ema": 1.0}, "ema is 1.0"),
        ({"cached_crops": 0}, "cached_crops is 0"),
        ({"lora": 0}, "lora is 0"),
        ({"early_stopping": 2}, "early_stopping"),
])  # fmt: skip
def test_wrong_values_are_named(tmp_path, options, value):
    with pytest.raises(ValueError, match=value):
        arguments(tmp_path, **options)


def test_transformers_parser_reads_them(tmp_path):
    parser = HfArgumentParser(EoMTTrainingArguments)
    line = f"--output_dir {tmp_path} --use_cpu --report_to none --recipe ade20k_semantic_eomt_large_512 --llrd 0.9 "
    line += "--llrd-l2-enabled false --task semantic"
    (args,) = parser.parse_args_into_dataclasses(line.split())
    assert (args.llrd, args.llrd_l2_enabled, args.learning_rate, args.task) == (0.9, False, 1e-4, "semantic")
    assert args.precision == "fp32"
    assert set(StockOptions.__annotations__) <= set(EoMTTrainingArguments.__dataclass_fields__)


def test_the_metric_for_the_best_model_follows_the_task(tmp_path):
    args = arguments(
        tmp_path, task="instance", load_best_model_at_end=True, eval_strategy="epoch", save_strategy="epoch"
    )
    assert (args.metric_for_best_model, args.greater_is_better) == ("ap", True)


def test_the_command_has_a_progress_bar(monkeypatch):
    """Though it silences the logs, which transformers' default follows."""
    monkeypatch.setattr(logging.get_logger("transformers"), "level", logging.ERROR)
    assert not command_arguments(RunOptions(), StockOptions(use_cpu=True), "x").disable_tqdm
