"""`eomt train`: a recipe of the paper, or fine-tuning on own data; saves a model ready for the Auto classes."""

import argparse
from dataclasses import asdict
from pathlib import Path

from transformers.utils.logging import disable_progress_bar

from .check import check_data, describe, list_problems
from .options import usable_cores
from .training import own_data
from .training.arguments import EoMTTrainingArguments
from .training.callbacks import progress_line
from .training.checkpoints import check_options, write_options
from .training.data.hold_out import UNSPLIT
from .training.data.load import splits_of
from .training.data.rows import DataProblems
from .training.files import write_json
from .training.initial_model import starting_config, starting_task
from .training.options import DataOptions, ModelOptions
from .training.run_card import final_evaluation
from .training.run_setup import build_trainer, fill, load_split, train_transform, with_more
from .training.trainer import EoMTTrainer

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


def main(argv: list[str]) -> int:
    options = read(argv)
    if options is None:
        return list_recipes()
    data, model, args, resume = options
    if data.check:
        report, readable = check_run(data, model, args)
        print(report)
        return 0 if readable else 1
    run(data, model, args, resume)
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
    from .training.options import DataOptions, ModelOptions
    from .training.run_options import RunOptions, StockOptions

    _parser((DataOptions, ModelOptions, RunOptions, StockOptions)).parse_args(["--help"])


def parse(argv: list[str]):
    """Command line → (DataOptions, ModelOptions, EoMTTrainingArguments, whether to resume)."""
    from .training.arguments import EoMTTrainingArguments
    from .training.options import DataOptions, ModelOptions

    parser = _parser((DataOptions, ModelOptions, EoMTTrainingArguments))
    parser.set_defaults(
        eval_strategy="steps", eval_steps=0.1, save_strategy="steps", save_steps=0.1, save_total_limit=2,
        logging_steps=20, report_to="none", per_device_eval_batch_size=1, dataloader_num_workers=usable_cores(),
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
        from .configuration.recipes import get_recipe

        recipe = get_recipe(values.recipe)
        share = recipe.evaluation_epochs / (values.num_train_epochs or recipe.epochs)
        values.eval_steps = values.save_steps = share if share < 1 else 0.999


def list_recipes() -> int:
    from .configuration.recipes import RECIPES

    width = max(map(len, RECIPES))
    for recipe in RECIPES.values():
        result = f"{recipe.reported.value} {recipe.reported.metric}"
        print(f"{recipe.name:<{width}}  {result:<10} {recipe.total_steps:>8,} steps  {recipe.backbone}")
    return 0


def run(data: DataOptions, model: ModelOptions, args: EoMTTrainingArguments, resume: bool = False) -> None:
    """Train, evaluate and save; the output folder gets model, processor, card, curves and results.

    Raises:
        ValueError: for options that do not fit the data, the model or the run to resume, before training starts.
    """
    disable_progress_bar()  # one bar, the run's, not one for each file that is saved
    has_checkpoints = any(Path(args.output_dir).glob("checkpoint-*"))
    if has_checkpoints and not resume:
        raise ValueError(
            f"{args.output_dir} has checkpoints of a run; add --resume to continue it or choose another --output-dir"
        )
    trainer, choices = build_trainer(data, model, args)
    args = trainer.args
    if has_checkpoints:
        check_options(args, trainer.model.config)
    if trainer.is_world_process_zero():
        if not has_checkpoints:
            write_options(args, trainer.model.config, asdict(data) | asdict(model))
        if choices:
            print(f"chosen for this data; each can be given instead:\n{own_data.describe(choices)}")
        print(summary(trainer), flush=True)
        if trainer.eval_dataset is not None and splits_of(data.data, data.dataset, args.task) in UNSPLIT:
            _write_split(trainer)
    trainer.train(resume_from_checkpoint=resume or None)
    _finish(trainer)


def check_run(data: DataOptions, model: ModelOptions, args: EoMTTrainingArguments) -> tuple[str, bool]:
    """Read every image of both splits → (a report for people, whether all is readable); pictures go to output_dir."""
    start = starting_config(model, args)
    args.task = args.task or starting_task(start, model)
    splits = ("train", "val") if args.eval_strategy != "no" else ("train",)
    texts, good, space = [], True, None
    for split in splits:
        try:
            dataset, space = load_split(data, args, split, space)
        except DataProblems as error:
            texts.append(f"--- {split} ---\n{list_problems(error.args)}")
            good = False
            continue
        if split == "train":
            dataset, space = with_more(dataset, data, args, space)
            args, _ = fill(data, model, args, dataset, start)
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


def summary(trainer: EoMTTrainer) -> str:
    """What is about to be trained, for a person to check before the hours it takes."""
    args, config = trainer.args, trainer.model.config
    parameters = sum(p.numel() for p in trainer.model.parameters())
    *_, steps = trainer.set_initial_training_values(args, trainer.get_train_dataloader())
    length = "{} steps, warm-up {} + {} of them".format(steps, *args.warmup(steps))
    evaluated = len(trainer.eval_dataset) if trainer.eval_dataset is not None else "none"
    lines = [
        f"task       {config.task}, {config.num_labels} classes, {len(config.stuff_label_ids)} of them stuff",
        f"data       {len(trainer.train_dataset)} images to train on, {evaluated} to evaluate on",
        f"model      {config.model_type}, {parameters / 1e6:.1f}M parameters, input {config.image_size}, "
        f"{config.num_hidden_layers} blocks of width {config.hidden_size}",
        f"queries    {config.num_queries} in the last {config.num_blocks} blocks, masks {args.masking}",
        f"batches    {args.total_batch_size} images = {args.per_device_train_batch_size} × "
        f"{args.gradient_accumulation_steps} accumulated × {args.world_size} processes",
        f"schedule   {length}, rate {args.learning_rate:g}, backbone "
        f"{args.backbone_learning_rate or args.learning_rate:g} × {args.llrd:g} a block",
    ]
    if args.recipe_values:
        reported = args.recipe_values.reported
        lines.append(
            f"recipe     {args.recipe}: the authors report {reported.value} {reported.metric} ({reported.table})"
        )
    return "\n".join(lines)


def _write_split(trainer: EoMTTrainer) -> None:
    splits = {"train": trainer.train_dataset, "val": trainer.eval_dataset}
    names = {split: rows.with_format(None)["file_name"][:] for split, rows in splits.items()}
    if names["train"] == names["val"]:
        print(f"split      none: {len(names['val'])} images are too few to hold any out", flush=True)
        return
    write_json(Path(trainer.args.output_dir, "split.json"), names, indent=1)
    images = sum(map(len, names.values()))
    print(f"split      {len(names['val'])} of {images} images held out, as there is no val: split.json", flush=True)


def _finish(trainer: EoMTTrainer) -> None:
    folder = Path(trainer.args.output_dir)
    results = {}
    if trainer.eval_dataset is not None:
        results = final_evaluation(trainer.args, trainer.state) or trainer.evaluate()
    trainer.save_model()
    trainer.create_model_card()
    if trainer.is_world_process_zero():
        trainer.state.save_to_json(str(folder / "trainer_state.json"))
        write_json(folder / "results.json", results, indent=2)
        print(progress_line(results) or "not evaluated")
        print(f"model, processor, README.md, curves.png and results.json: {folder}")
