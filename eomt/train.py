"""`eomt train`: train a recipe of the paper or fine-tune on your own data, and save a model for the Auto classes."""

import difflib
from dataclasses import asdict, replace
from pathlib import Path

from transformers import HfArgumentParser, TrainingArguments
from transformers.utils.logging import disable_progress_bar

from .check import check_data, describe, list_problems
from .configuration.pmt import PMTConfig
from .configuration.recipes import RECIPES
from .training.arguments import EoMTTrainingArguments, command_arguments
from .training.callbacks import ReadableProgress, progress_line
from .training.card import final_evaluation
from .training.checkpoints import check_options, checkpoint_to_resume, write_options
from .training.data.load import UNSPLIT, detect_format, splits_of, tasks_of
from .training.data.rows import DataProblems
from .training.defaults import Choice, choose_defaults, data_facts
from .training.files import write_json
from .training.options import DataOptions, ModelOptions, RunOptions, StockOptions
from .training.setup import build_trainer, load_split, train_transform, with_more
from .training.start import starting_point
from .training.trainer import EoMTTrainer


def list_recipes() -> int:
    """Print the recipes with their reported results. Returns the exit code."""
    width = max(map(len, RECIPES))
    for recipe in RECIPES.values():
        result = f"{recipe.reported.value} {recipe.reported.metric}"
        print(f"{recipe.name:<{width}}  {result:<10} {recipe.total_steps:>8,} steps  {recipe.backbone}")
    return 0


def arguments(
    data: DataOptions, model: ModelOptions, run: RunOptions, stock: StockOptions, others: dict[str, str]
) -> EoMTTrainingArguments:
    """Training arguments from the options of the command.

    Args:
        others: further fields of `TrainingArguments`, as text.

    Raises:
        ValueError: for a name that `TrainingArguments` does not have. The message has the nearest one.
    """
    parser = HfArgumentParser(TrainingArguments)
    values = {}
    for option, text in others.items():
        name = option.replace("-", "_")
        if name not in TrainingArguments.__dataclass_fields__:
            known = [*TrainingArguments.__dataclass_fields__, *vars(data), *vars(model), *vars(run), *vars(stock)]
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"there is no option {option!r}{hint}")
        values[name] = getattr(parser.parse_args([f"--{name}={text}"]), name)
    if run.task is None and run.recipe is None and model.checkpoint is None:
        tasks = tasks_of(data.data, data.dataset)
        run = replace(run, task=tasks[0] if len(tasks) == 1 else "panoptic")
    task = run.task or ("finetuned" if model.checkpoint else "panoptic")
    return command_arguments(run, stock, f"{Path(data.data).name}_{task}", **values)


def train(data: DataOptions, model: ModelOptions, args: EoMTTrainingArguments, resume: bool = False) -> int:
    """Train, evaluate, and save model, processor, card, curves and results to the output folder.

    Raises:
        ValueError: before the training, for options that do not fit the data, the model or the run to resume.
    """
    disable_progress_bar()  # one bar for the run, none for saved files
    has_checkpoints = any(Path(args.output_dir).glob("checkpoint-*"))
    if has_checkpoints and not resume:
        raise ValueError(f"{args.output_dir} has checkpoints of a run; resume it or choose another output folder")
    checkpoint = checkpoint_to_resume(args.output_dir) if resume else None
    trainer, choices = build_trainer(data, model, args)
    args = trainer.args
    if has_checkpoints:
        check_options(args, trainer.model.config)
    if not args.disable_tqdm:
        ReadableProgress.replace_stock(trainer)
    if trainer.is_world_process_zero():
        if not has_checkpoints:
            write_options(args, trainer.model.config, asdict(data) | asdict(model))
        if choices:
            print(f"chosen for this data; to change them, give the options:\n{choices_text(choices)}")
        print(summary(trainer), flush=True)
        if checkpoint is not None:
            print(f"resume     {checkpoint}", flush=True)
        if trainer.eval_dataset is not None and splits_of(data.data, data.dataset, args.task) in UNSPLIT:
            _write_split(trainer)
    trainer.train(resume_from_checkpoint=checkpoint)
    _finish(trainer)
    return 0


def check(data: DataOptions, model: ModelOptions, args: EoMTTrainingArguments) -> int:
    """Read every image of both splits, print a report and draw samples. Returns 1 if an image is unreadable, else 0."""
    start = starting_point(model, args)
    args.task = args.task or start.task
    data_format = detect_format(Path(data.data), args.task) if data.dataset == "auto" else data.dataset
    print(f"{data.data}: {data_format} data, task {args.task}")
    splits = ["train"] if args.eval_strategy == "no" else ["train", "val"]
    readable, labels, seen = True, None, {}
    for split in splits:
        print(f"--- {split} ---")
        try:
            dataset, labels = load_split(data, args, split, labels)
        except DataProblems as error:
            print(list_problems(error.args))
            readable = False
            continue
        if split == "train":
            dataset, labels = with_more(dataset, data, args, labels)
            if not args.recipe:
                data, model, args, _ = choose_defaults(data_facts(dataset), data, model, args, start)
        channels = model.num_channels or getattr(start.config, "num_channels", 3)
        report = check_data(
            dataset,
            labels,
            train_transform(data, args, labels, channels),
            Path(args.output_dir, f"check-{split}"),
            num_workers=args.dataloader_num_workers,
            seed=args.seed,
            seen=seen,
        )
        readable = readable and not report["unreadable"]
        print(describe(report))
    return 0 if readable else 1


def choices_text(choices: list[Choice]) -> str:
    """One line for each choice, with its reason."""
    width = max(len(choice.name) for choice in choices)
    lines = [f"  --{c.name.replace('_', '-'):<{width}} {c.value}: {c.reason}" for c in choices]
    return "\n".join(lines)


def summary(trainer: EoMTTrainer) -> str:
    """Data, model and schedule of the run as text, to be checked before hours of training."""
    args, config = trainer.args, trainer.model.config
    parameters = sum(p.numel() for p in trainer.model.parameters())
    *_, steps = trainer.set_initial_training_values(args, trainer.get_train_dataloader())
    head_warmup, backbone_warmup = args.warmup(steps)
    if isinstance(config, PMTConfig):
        schedule = f"{head_warmup}, rate {args.learning_rate:g}, cosine decay, the backbone frozen"
    else:
        backbone_rate = args.backbone_learning_rate or args.learning_rate
        schedule = f"{head_warmup} + {backbone_warmup}, rate {args.learning_rate:g}, "
        schedule += f"backbone {backbone_rate:g} × {args.llrd:g} per block"
    evaluated = len(trainer.eval_dataset) if trainer.eval_dataset is not None else "none"
    lines = [
        f"task       {config.task}, {config.num_labels} classes, {len(config.stuff_label_ids)} of them stuff",
        f"data       {len(trainer.train_dataset)} images to train on, {evaluated} to evaluate on",
        f"model      {config.model_type}, {parameters / 1e6:.1f}M parameters, input {config.image_size}, "
        f"{config.num_hidden_layers} blocks of width {config.hidden_size}",
        f"queries    {config.num_queries} in the last {config.num_blocks} blocks, masks {args.masking}",
        f"batches    {args.total_batch_size} images = {args.per_device_train_batch_size} × "
        f"{args.gradient_accumulation_steps} accumulated × {args.world_size} processes",
        f"schedule   {steps} steps, warm-up {schedule}",
    ]
    if args.recipe_values:
        reported = args.recipe_values.reported
        lines.append(
            f"recipe     {args.recipe}: the authors report {reported.value} {reported.metric} ({reported.table})"
        )
    return "\n".join(lines)


def _write_split(trainer: EoMTTrainer) -> None:
    """Record the held-out images in split.json, for `eomt evaluate`."""
    splits = {"train": trainer.train_dataset, "val": trainer.eval_dataset}
    names = {split: rows.with_format(None)["file_name"][:] for split, rows in splits.items()}
    if names["train"] == names["val"]:
        print(f"split      none: {len(names['val'])} images are too few to hold out any", flush=True)
        return
    write_json(Path(trainer.args.output_dir, "split.json"), names, indent=1)
    images = sum(map(len, names.values()))
    print(f"split      no val split; {len(names['val'])} of {images} images held out: split.json", flush=True)


def _finish(trainer: EoMTTrainer) -> None:
    """Evaluate the model unless the last step did, and save everything."""
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
