"""`eomt train`: a recipe of the paper, or fine-tuning on own data; saves a model ready for the Auto classes."""

import argparse
from pathlib import Path

from .options import data_workers

EPILOG = """examples:
  a run of the paper      eomt train --recipe coco_panoptic_eomt_large_640 --data COCO
  own data                eomt train --data DATA --task semantic --backbone vit_small_patch14_reg4_dinov2
  look at the data        eomt train --data DATA --task instance --check
  resume after a stop     the same command with --resume
  four GPUs               torchrun --nproc_per_node 4 --no-python eomt train …    (a recipe's step stays 16 images)
More launches (nodes, SLURM, FSDP, DeepSpeed): training/configs/README.md. --help-all adds the options of transformers'
TrainingArguments; --list-recipes lists the recipes."""


def read(argv: list[str]) -> tuple | None:
    """As `parse`; None where only the recipes are asked for."""
    if "--list-recipes" in argv:
        return None
    if {"-h", "--help"} & {*argv}:
        show_help()
    return parse(argv)


def run(options: tuple | None) -> int:
    if options is None:
        return list_recipes()
    from ..training.run import check_run
    from ..training.run import run as train

    data, model, args, resume = options
    if data.check:
        report, readable = check_run(data, model, args)
        print(report)
        return 0 if readable else 1
    train(data, model, args, resume)
    return 0


def _parser(options: tuple):
    from transformers import HfArgumentParser

    parser = HfArgumentParser(
        options,
        prog="eomt train",
        usage="eomt train --data PATH [--recipe NAME | --task TASK --backbone NAME] [options]",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--resume", action="store_true", help="Resume from the last complete checkpoint, if there is one."
    )
    return parser


def show_help() -> None:
    """Our options and the stock Trainer's most used, without importing torch."""
    from ..training.options import DataOptions, ModelOptions
    from ..training.run_options import RunOptions, StockOptions

    _parser((DataOptions, ModelOptions, RunOptions, StockOptions)).parse_args(["--help"])


def parse(argv: list[str]):
    """Command line → (DataOptions, ModelOptions, EoMTTrainingArguments, whether to resume)."""
    from ..training.arguments import EoMTTrainingArguments
    from ..training.options import DataOptions, ModelOptions

    parser = _parser((DataOptions, ModelOptions, EoMTTrainingArguments))
    parser.set_defaults(
        eval_strategy="steps", eval_steps=0.1, save_strategy="steps", save_steps=0.1, save_total_limit=2,
        logging_steps=20, report_to="none", per_device_eval_batch_size=1, dataloader_num_workers=data_workers(),
        save_best=True,
    )  # fmt: skip
    if "--help-all" in argv:
        argv = ["--help"]
    values = parser.parse_args(argv)
    _fill(values, {part.split("=")[0].lstrip("-").replace("-", "_") for part in argv if part.startswith("--")})
    fields = {name: value for name, value in vars(values).items() if name != "resume"}
    data, model, args = parser.parse_dict(fields, allow_extra_keys=False)
    return data, model, args, values.resume


def _fill(values: argparse.Namespace, given: set[str]) -> None:
    """Output folder and evaluation times, before the options are checked; `given`: the names on the command line."""
    if values.output_dir is None:
        task = values.task or ("finetuned" if values.checkpoint else "panoptic")
        values.output_dir = f"runs/{values.recipe or f'{Path(values.data).name}_{task}'}"
    if values.recipe and not given & {"eval_strategy", "eval_steps", "save_strategy", "save_steps"}:
        from ..configuration.recipes import get_recipe

        recipe = get_recipe(values.recipe)
        share = recipe.evaluation_epochs / (values.num_train_epochs or recipe.epochs)
        values.eval_steps = values.save_steps = share if share < 1 else 0.999


def list_recipes() -> int:
    from ..configuration.recipes import RECIPES

    width = max(map(len, RECIPES))
    for recipe in RECIPES.values():
        result = f"{recipe.reported.value} {recipe.reported.metric}"
        print(f"{recipe.name:<{width}}  {result:<10} {recipe.total_steps:>8,} steps  {recipe.backbone}")
    return 0
