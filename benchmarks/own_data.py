"""Trainings on own data, short ones of ours and of the built-in model, and whole ones of ours: fills docs/results.md.

python -m benchmarks.own_data train VARIANT --data DATA --task TASK --weights FILE --output FOLDER     # one short run
python -m benchmarks.own_data whole --data DATA --task TASK --weights FILE --output FOLDER     # one whole run; resumes
python -m benchmarks.own_data page RUNS                                # all runs below a folder to docs/results.md

All variants of a short run train on the same images, with the same batch size and number of steps, and are evaluated by
`evaluate_model` on the same held-out images. All figures on the page are written by this script.
"""

import argparse
import io
import math
import resource
import shutil
import statistics
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from transformers import EomtForUniversalSegmentation, Trainer, TrainingArguments, set_seed

from eomt import EoMTConfig, EoMTForUniversalSegmentation, EoMTImageProcessor
from eomt.auto import register
from eomt.configuration import TASK_ROWS
from eomt.report import ImageReport
from eomt.train import train as train_command
from eomt.training.arguments import command_arguments
from eomt.training.collator import EoMTDataCollator
from eomt.training.data import EvaluationTransform, TrainTransform, load_data
from eomt.training.defaults import cpu_has_bf16
from eomt.training.evaluation import evaluate_model
from eomt.training.files import read_json, write_atomic, write_json
from eomt.training.options import DataOptions, ModelOptions, RunOptions, StockOptions, listed
from eomt.training.setup import build_trainer

from .pages import fill_parts

BACKBONE = "vit_small_patch14_dinov2"
PICTURES = ("worst", "median", "best")
SECOND_METRIC = {  # key and name
    "instance": ("ap_50", "AP50"),
    "semantic": ("overall_accuracy", "pixels right"),
    "panoptic": ("rq", "RQ"),
}


@dataclass(frozen=True)
class Variant:
    title: str
    options: dict  # of `eomt train` instead of its defaults; for the built-in, learning rate and schedule


OURS = {
    "ours": Variant("`eomt train` with its defaults for own data", {}),
    "paper-rates": Variant(
        "the same at the paper's rate for all, 1e-4", {"learning_rate": 1e-4, "backbone_learning_rate": 1e-4}
    ),
    "scratch": Variant("the same without the pre-trained weights", {"backbone_weights": "scratch"}),
    "frozen": Variant("`--freeze-backbone`", {"freeze_backbone": True}),
    "lora": Variant("`--lora 16`", {"lora": 16}),
    "pmt": Variant("`--architecture pmt`", {"architecture": "pmt"}),
    "ema": Variant("`--ema 0.98`", {"ema": 0.98}),
    "always": Variant("`--masking always`", {"masking": "always"}),
    "switched-off": Variant("`--masking switched-off`", {"masking": "switched-off"}),
    "never": Variant("`--masking never`", {"masking": "never"}),
    "pseudo-labels": Variant("`--more-data`: labels of the first row's model for the other training images", {}),
}
BUILT_IN = {
    "built-in-example": Variant(
        "built-in model, stock Trainer, 1e-5 constant (the example's rate)",
        {"learning_rate": 1e-5, "lr_scheduler_type": "constant"},
    ),
    "built-in-1e-4": Variant("built-in model, stock Trainer, 1e-4 linear", {"learning_rate": 1e-4}),
    "built-in-5e-4": Variant("built-in model, stock Trainer, 5e-4 linear", {"learning_rate": 5e-4}),
}
WHOLE = {"whole": Variant("`eomt train` with its defaults, at its own length", {})}
VARIANTS = OURS | BUILT_IN | WHOLE

# --- a run -----------------------------------------------------------------------------------------------------------


def train_variant(options) -> None:
    """Train and evaluate a variant. Writes run.json and drawn images to the output folder."""
    if (options.variant == "pseudo-labels") != bool(options.more_data):
        raise SystemExit("the variant pseudo-labels and --more-data belong together")
    if (options.output / "run.json").exists():
        raise SystemExit(f"{options.output} has a finished run; choose another --output")
    options.output.mkdir(parents=True, exist_ok=True)
    register()
    train = train_built_in if options.variant in BUILT_IN else train_ours
    model, processor, log = train(options)

    run = {name: getattr(options, name) for name in ("variant", "steps", "batch", "image_size")}
    record_run(options, model.eval(), processor, log, run)


def train_whole(options) -> None:
    """`eomt train` with its defaults, at the length that it chooses; resumes. Then times 20 more steps, and evaluates.

    Writes run.json and drawn images into the run's folder.
    """
    folder = options.output
    data = DataOptions(data=options.data, image_size=options.image_size, ignore_ids=options.ignore_ids)
    model = ModelOptions(backbone=BACKBONE, backbone_weights=options.weights)
    run = RunOptions(task=options.task, seed=options.seed)
    if not (folder / "results.json").exists():
        stock = StockOptions(output_dir=str(folder), save_steps=25)
        train_command(data, model, command_arguments(run, stock, "whole"), resume=True)
    timed = StockOptions(output_dir=str(folder / "timed"), max_steps=20, eval_strategy="no", save_strategy="no")
    trainer, _ = build_trainer(data, model, command_arguments(run, timed, "whole", disable_tqdm=True))
    seconds = trainer.train().metrics["train_runtime"] / 20

    trained = EoMTForUniversalSegmentation.from_pretrained(folder).eval()
    state = read_json(folder / "trainer_state.json")
    run = {
        "variant": "whole",
        "steps": state["max_steps"],
        "batch": trainer.args.total_batch_size,
        "image_size": trained.config.image_size,
        "seconds_per_step": seconds,
    }
    record_run(options, trained, EoMTImageProcessor.from_pretrained(folder), state["log_history"], run)


def record_run(options, model, processor, log: list[dict], run: dict) -> None:
    """Evaluate a trained model. Writes run.json and drawn images to the output folder.

    Args:
        run: what the caller knows of the run: variant, steps, batch and image size.
    """
    dataset, space = load_split(options, "val")
    dataset = dataset.with_transform(EvaluationTransform(space, task=options.task))
    report = ImageReport(options.task, space, worst=len(dataset))
    metrics = evaluate_model(
        model, processor, dataset, task=options.task, label_space=space, on_image=report, progress=False
    )
    drawn = report.draw_worst(options.output / "images")
    for name, index in zip(PICTURES, (0, len(drawn) // 2, -1)):
        Image.open(drawn[index]["picture"]).save(options.output / f"{name}.jpg")

    metric = TASK_ROWS[options.task].metric_key
    run |= {
        "data": Path(options.data).name,
        "task": options.task,
        "seed": options.seed,
        "metric": metric,
        "value": metrics[metric],
        "metrics": {name: value for name, value in metrics.items() if isinstance(value, (int, float))},
        "images": drawn,
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "log": [entry for entry in log if "loss" in entry],
    }
    write_json(options.output / "run.json", run, indent=1)
    print(f"{run['variant']} {run['data']}: {metrics[metric]:.4f}")


def load_split(options, split: str):
    """Rows and label space of a split, the same for every variant."""
    ignored = listed(options.ignore_ids, int)
    return load_data(options.data, task=options.task, split=split, ignore_ids=ignored, automatic_split=True)


def train_ours(options) -> tuple[torch.nn.Module, EoMTImageProcessor, list[dict]]:
    """`eomt train` with its defaults for own data and the variant's options. Returns model, processor and log."""
    added = dict(OURS[options.variant].options)
    data = DataOptions(
        data=options.data,
        image_size=str(options.image_size),
        ignore_ids=options.ignore_ids,
        more_data=options.more_data,
    )
    model = ModelOptions(
        architecture=added.pop("architecture", None),
        backbone=BACKBONE,
        backbone_weights=added.pop("backbone_weights", options.weights),
    )
    run = RunOptions(
        task=options.task,
        seed=options.seed,
        total_batch_size=options.batch,
        per_device_train_batch_size=options.batch,
        precision="bf16" if cpu_has_bf16() else "fp32",
        **added,
    )
    stock = StockOptions(
        output_dir=str(options.output),
        max_steps=options.steps,
        eval_steps=options.steps + 1,  # never, but "no" would train on the images to be held out
        save_strategy="no",
        logging_steps=10,
        dataloader_num_workers=0,
    )
    trainer, _ = build_trainer(data, model, command_arguments(run, stock, options.variant, disable_tqdm=True))
    trainer.train()
    return trainer.model, trainer.processing_class, trainer.state.log_history


def train_built_in(options) -> tuple[torch.nn.Module, EoMTImageProcessor, list[dict]]:
    """transformers' EoMT from the same backbone in the stock Trainer. Returns model, processor and log.

    The training is that of Mask2Former in transformers' example of instance segmentation: images resized to the input
    size, flipped, with color jitter; one learning rate for all parameters.
    """
    train, space = load_split(options, "train")
    set_seed(options.seed)
    stuff = list(space.stuff_label_ids)
    config = EoMTConfig.for_backbone(
        BACKBONE,
        image_size=options.image_size,
        task=options.task,
        **space.config_fields,
        stuff_label_ids=stuff,
        num_queries=100,  # as ours: these images have few segments
        train_num_points=2048,
    )
    start = options.output / "start"
    EoMTForUniversalSegmentation.from_pretrained_backbone(options.weights, config).save_pretrained(start)
    transform = TrainTransform(
        space, task=options.task, size=options.image_size, scale_range=(1.0, 1.0), color_jitter=True
    )
    collate = EoMTDataCollator()

    def with_float_masks(samples: list[dict]) -> dict:  # the built-in takes no bool masks
        batch = collate(samples)
        return batch | {"mask_labels": [masks.float() for masks in batch["mask_labels"]]}

    trainer = Trainer(
        EomtForUniversalSegmentation.from_pretrained(start),
        TrainingArguments(
            str(options.output / "trainer"),
            max_steps=options.steps,
            per_device_train_batch_size=options.batch,
            seed=options.seed,
            logging_steps=10,
            bf16=cpu_has_bf16(),
            use_cpu=not torch.cuda.is_available(),
            disable_tqdm=True,
            save_strategy="no",
            report_to=[],
            remove_unused_columns=False,
            label_names=["mask_labels", "class_labels"],
            **BUILT_IN[options.variant].options,
        ),
        data_collator=with_float_masks,
        train_dataset=train.with_transform(transform),
    )
    trainer.train()
    folder = options.output / "built-in"
    trainer.save_model(folder)
    model = EoMTForUniversalSegmentation.from_pretrained(folder)  # the same numbers; masked, by its buffer
    model.config.task = options.task
    processor = EoMTImageProcessor(task=options.task, size=options.image_size, stuff_label_ids=stuff)
    return model, processor, trainer.state.log_history


# --- the page --------------------------------------------------------------------------------------------------------


def write_page(options) -> None:
    """Write the tables, images and curves of all runs. Photographs are of the named data sets, by default of all."""
    tables = read_runs(options.runs)
    whole = [run for variants in tables.values() for run in variants.pop("whole", [])]
    short = {key: variants for key, variants in tables.items() if variants}
    folder, parts = options.page.parent, {}
    if whole:
        parts["whole"] = [whole_table(whole)]
        for run in whole:
            curves = f"results-{run['data']}-{run['task']}-{run['steps']}-{run['image_size']}-curves.png"
            shutil.copyfile(run["folder"] / "curves.png", folder / curves)
            parts["whole"] += [f"### {run['data']}, {run['task']}", f"![curves]({curves})"]
            parts["whole"] += show_pictures(run, options)
    if short:
        parts["runs"] = []
        for (data, task, steps, batch, size), variants in short.items():
            title = f"### {data}, {task}, {size}²\n\n{steps} steps of {batch} images at {size} × {size}."
            parts["runs"] += [title, variant_table(variants, task), verdict(variants, TASK_ROWS[task].metric)]
            parts["runs"] += show_pictures(next(iter(variants.values()))[0], options)
        draw_curves(short, folder / "results-curves.png")
        note = "Mean over the seeds; dashed: built-in. “never” is left out: its loss is of one prediction, not a sum."
        parts["runs"] += ["### Curves", note, "![training loss](results-curves.png)"]
    fill_parts(options.page, **{name: "\n\n".join(filter(None, texts)) for name, texts in parts.items()})
    print(options.page)


def show_pictures(run: dict, options) -> list[str]:
    """Write the worst, median and best image of a run beside the page. Returns the paragraphs that show them."""
    files = [run["folder"] / f"{name}.jpg" for name in PICTURES]
    if not all(file.is_file() for file in files) or run["data"] not in (options.pictures or [run["data"]]):
        return []
    name = f"results-{run['data']}-{run['task']}-{run['steps']}-{run['image_size']}.jpg"
    save_small(stack([Image.open(file) for file in files]), options.page.parent / name)
    shown = f"Worst, median and best held-out image of “{run['variant']}”, seed {run['seed']}:"
    return [shown, f"![photo, ground truth and prediction]({name})"]


def read_runs(folder: Path) -> dict[tuple, dict[str, list[dict]]]:
    """{(data, task, steps, batch, image size): {variant: its runs}}, one table for each key.

    Raises:
        ValueError: if there is no finished run below the folder.
    """
    runs = [read_json(file) | {"folder": file.parent} for file in folder.rglob("run.json")]
    if not runs:
        raise ValueError(f"{folder}: there is no run.json in it; python -m benchmarks.own_data train writes one")
    order = list(VARIANTS)
    runs.sort(key=lambda run: (run["data"], run["task"], order.index(run["variant"]), run["seed"]))
    tables: dict[tuple, dict[str, list[dict]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        key = tuple(run[name] for name in ("data", "task", "steps", "batch", "image_size"))
        tables[key][run["variant"]].append(run)
    return tables


def spread(values: list[float]) -> str:
    """The mean in percent, and the extremes of several values."""
    mean = f"{100 * statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ({100 * min(values):.1f} … {100 * max(values):.1f})"


def whole_table(runs: list[dict]) -> str:
    """One row for each whole run."""
    lines = ["| data | steps | crop | result | | seconds per step | memory |", "|---|---|---|---:|---:|---:|---:|"]
    for run in runs:
        second, name = SECOND_METRIC[run["task"]]
        cells = [f"{run['data']}, {run['task']}", f"{run['steps']:,} of {run['batch']}", f"{run['image_size']}²"]
        cells.append(f"**{100 * run['value']:.1f} {TASK_ROWS[run['task']].metric}**")
        cells.append(f"{100 * run['metrics'][second]:.1f} {name}")
        cells.append(f"{run['seconds_per_step']:.1f}")
        cells.append(f"{run['peak_memory_bytes'] / 2**30:.1f} GiB")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def variant_table(variants: dict[str, list[dict]], task: str) -> str:
    second, name = SECOND_METRIC[task]
    lines = [f"|  | {TASK_ROWS[task].metric} | {name} | seeds | trained parameters | memory |"]
    lines.append("|---|---:|---:|---:|---:|---:|")
    best = max(mean_value(runs) for runs in variants.values())
    for variant, runs in variants.items():
        shown = spread([run["value"] for run in runs])
        cells = [VARIANTS[variant].title, f"**{shown}**" if mean_value(runs) == best else shown]
        cells.append(spread([run["metrics"][second] for run in runs]))
        cells.append(", ".join(str(run["seed"]) for run in runs))
        cells.append(f"{runs[0]['trained_parameters'] / 1e6:.1f} M")
        cells.append(f"{max(run['peak_memory_bytes'] for run in runs) / 2**30:.1f} GiB")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def mean_value(runs: list[dict]) -> float:
    return statistics.mean(run["value"] for run in runs)


def verdict(variants: dict[str, list[dict]], metric: str) -> str:
    """Ours against the built-in at its best rate, seed by seed; empty without the one or the other."""
    theirs = {name: runs for name, runs in variants.items() if name in BUILT_IN}
    if "ours" not in variants or not theirs:
        return ""
    best = max(theirs, key=lambda name: mean_value(theirs[name]))
    ours = {run["seed"]: run["value"] for run in variants["ours"]}
    other = {run["seed"]: run["value"] for run in variants[best]}
    seeds = sorted(ours.keys() & other.keys())
    won = sum(round(100 * ours[seed], 1) > round(100 * other[seed], 1) for seed in seeds)  # as in the table
    count = "1 seed" if len(seeds) == 1 else f"{len(seeds)} seeds"
    rate = "its best rate here" if len(theirs) > 1 else "the only rate tried here"
    return (
        f"Ours {spread(list(ours.values()))} {metric}; the built-in at {rate} "
        f"{spread(list(other.values()))}. Ours is ahead in {won} of {count}."
    )


def stack(images: list[Image.Image], width: int = 900) -> Image.Image:
    """Join images below each other, all at one width (pixels)."""
    scaled = [image.resize((width, round(image.height * width / image.width))) for image in images]
    sheet = Image.new("RGB", (width, sum(image.height for image in scaled)))
    top = 0
    for image in scaled:
        sheet.paste(image, (0, top))
        top += image.height
    return sheet


def save_small(image: Image.Image, path: Path, most_bytes: int = 150_000) -> None:
    """Write a JPEG file of at most `most_bytes` if quality 25 suffices, at the best quality for it."""
    for quality in range(90, 20, -5):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality, optimize=True)
        if buffer.tell() < most_bytes:
            break
    write_atomic(path, lambda part: part.write_bytes(buffer.getvalue()))


def draw_curves(tables: dict[tuple, dict[str, list[dict]]], path: Path) -> None:
    """Draw the training loss of all variants, one panel for each table."""
    from matplotlib import pyplot as plt

    columns = min(3, len(tables))
    rows = math.ceil(len(tables) / columns)
    size = (4.6 * columns, 4.4 * rows)  # inches
    figure, panels = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for axes in panels.flat[len(tables) :]:
        axes.remove()
    for axes, ((data, task, *_, size), variants) in zip(panels.flat, tables.items()):
        for variant, runs in variants.items():
            if variant == "never":
                continue
            entries = zip(*(run["log"] for run in runs))  # a logged step of every seed
            points = [(logs[0]["step"], statistics.mean(float(row["loss"]) for row in logs)) for logs in entries]
            axes.plot(*zip(*points), label=variant, linestyle="--" if variant in BUILT_IN else "-")
        axes.set(title=f"{data}, {task}, {size}²", xlabel="optimizer step", ylabel="training loss", yscale="log")
        axes.yaxis.set_minor_formatter("{x:.0f}")
        axes.yaxis.set_major_formatter("{x:.0f}")
        axes.grid(alpha=0.3, which="both")
        if axes.lines:
            axes.legend(fontsize=7, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.17))
    write_atomic(path, lambda part: figure.savefig(part, dpi=90, format="png"))
    plt.close(figure)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    train = commands.add_parser("train", help="one short run")
    train.set_defaults(call=train_variant)
    train.add_argument("variant", choices=OURS | BUILT_IN)
    whole = commands.add_parser("whole", help="one run at its own length")
    whole.set_defaults(call=train_whole)
    for command in (train, whole):
        command.add_argument("--data", required=True)
        command.add_argument("--task", required=True, choices=TASK_ROWS)
        command.add_argument("--weights", required=True, help="file with the backbone's weights")
        command.add_argument("--output", required=True, type=Path)
        command.add_argument("--seed", type=int, default=0)
        command.add_argument(
            "--ignore-ids", metavar="IDS", help="values of label images for unlabeled pixels, as in eomt train"
        )
    train.add_argument("--steps", type=int, default=120)
    train.add_argument("--batch", type=int, default=4)
    train.add_argument("--image-size", type=int, default=224)
    whole.add_argument("--image-size", help="by default that of eomt train")
    train.add_argument("--more-data", help="folder of pseudo-labels, for the variant pseudo-labels")
    page = commands.add_parser("page", help="all runs below a folder to docs/results.md")
    page.set_defaults(call=write_page)
    page.add_argument("runs", type=Path)
    page.add_argument("--page", type=Path, default=Path("docs/results.md"), help="file with the mark `runs`")
    page.add_argument("--pictures", nargs="+", metavar="DATA", help="data sets with photographs that may be shown")
    options = parser.parse_args(argv)
    options.call(options)


if __name__ == "__main__":
    main()
