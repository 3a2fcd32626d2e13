"""One run of `eomt train`: check the data, or train, evaluate and save a model ready for the Auto classes."""

from dataclasses import asdict
from pathlib import Path

import torch
from transformers.utils.logging import disable_progress_bar

from . import own_data
from .arguments import EoMTTrainingArguments
from .callbacks import progress
from .cpu import keep_memory
from .data.check import check_data, describe, list_problems
from .data.hold_out import UNSPLIT
from .data.load import splits_of
from .data.rows import DataProblems
from .files import write_json
from .initial_model import starting_config, starting_task
from .options import DataOptions, ModelOptions
from .resumption import check_options, write_options
from .run_card import final_evaluation
from .run_setup import build_trainer, fill, load_split, train_transform, with_more
from .trainer import EoMTTrainer


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
    kept = torch.device(args.device).type == "cpu" and keep_memory()
    trainer, choices = build_trainer(data, model, args)
    args = trainer.args
    if has_checkpoints:
        check_options(args, trainer.model.config)
    if trainer.is_world_process_zero():
        if not has_checkpoints:
            write_options(args, trainer.model.config, asdict(data) | asdict(model))
        if choices:
            print(f"chosen for this data; each can be given instead:\n{own_data.describe(choices)}")
        if kept:
            print("memory     kept between steps (glibc's thresholds raised): mapping it anew costs a CPU time")
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
    if args.time_budget:
        length = f"as many steps as fit into {args.time_budget:g} minutes"
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
        print(progress.describe(results) or "not evaluated")
        print(f"model, processor, README.md, curves.png and results.json: {folder}")
