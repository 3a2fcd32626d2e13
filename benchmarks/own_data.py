"""One run of the comparison in docs/results.md: a variant, a data set, a seed → a run folder with run.json.

    python -m benchmarks.own_data VARIANT --data DATA --task TASK --weights FILE --output FOLDER [--seed 0]

Every variant sees the same images in batches of the same number, makes the same number of steps and is evaluated by
`evaluate_model` on the same held-out images. `benchmarks.results` turns run folders into the page.
"""

import argparse
import json
import resource
import statistics
import time
from pathlib import Path

import torch
from PIL import Image
from transformers import EomtForUniversalSegmentation, Trainer, TrainerCallback, TrainingArguments, set_seed

from eomt import EoMTConfig, EoMTForUniversalSegmentation, EoMTImageProcessor
from eomt.auto import register
from eomt.configuration import TASK_ROWS
from eomt.drawing import draw_prediction, side_by_side
from eomt.image_processing.inference import confident_instances
from eomt.training.arguments import command_arguments
from eomt.training.collator import EoMTDataCollator
from eomt.training.data import EvaluationTransform, TrainTransform, load_data
from eomt.training.evaluation import as_reference, evaluate_model, metric_for
from eomt.training.files import write_json
from eomt.training.options import DataOptions, ModelOptions, RunOptions, StockOptions, listed
from eomt.training.setup import build_trainer, cpu_has_bf16

OURS = {  # variant → what it adds to `eomt train`'s own defaults
    "ours": {},
    "paper-rates": {"learning_rate": 1e-4, "backbone_learning_rate": 1e-4},
    "scratch": {"backbone_weights": "scratch"},
    "frozen": {"freeze_backbone": True},
    "lora": {"lora": 16},
    "ema": {"ema": 0.98},
    "annealed": {"masking": "annealed"},
    "always": {"masking": "always"},
    "switched-off": {"masking": "switched-off"},
    "never": {"masking": "never"},
    "pseudo-labels": {},  # and --more-data
}
BUILT_IN = {  # variant → (learning rate, its schedule) of the stock Trainer
    "built-in-example": (1e-5, "constant"),  # as the README of transformers' example
    "built-in-1e-4": (1e-4, "linear"),
    "built-in-5e-4": (5e-4, "linear"),
}
PICTURES = ("worst", "median", "best")


class StepTimes(TrainerCallback):
    """Seconds of each optimizer step."""

    def __init__(self):
        self.seconds = []

    def on_step_begin(self, args, state, control, **kwargs):
        self.started = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds.append(time.perf_counter() - self.started)


def load_split(options, split: str):
    """Rows and label space of a split, the same for every variant."""
    ignored = listed(options.ignore_ids, int)
    return load_data(options.data, task=options.task, split=split, ignore_ids=ignored)


def train_ours(options) -> tuple[torch.nn.Module, EoMTImageProcessor, list[dict], StepTimes]:
    """`eomt train` with its defaults for own data, plus what the variant says."""
    added = dict(OURS[options.variant])
    data = DataOptions(
        data=options.data,
        image_size=str(options.image_size),
        ignore_ids=options.ignore_ids,
        more_data=options.more_data,
    )
    model = ModelOptions(backbone=options.backbone, backbone_weights=added.pop("backbone_weights", options.weights))
    run = RunOptions(
        task=options.task,
        seed=options.seed,
        total_batch_size=options.batch,
        per_device_train_batch_size=options.batch,
        precision=options.precision,
        **added,
    )
    stock = StockOptions(
        output_dir=str(options.output),
        max_steps=options.steps,
        eval_strategy="no",
        save_strategy="no",
        logging_steps=10,
        dataloader_num_workers=0,
    )
    args = command_arguments(run, stock, options.variant, disable_tqdm=True)
    trainer, _ = build_trainer(data, model, args)
    times = StepTimes()
    trainer.add_callback(times)
    trainer.train()
    return trainer.model, trainer.processing_class, trainer.state.log_history, times


def train_built_in(options) -> tuple[torch.nn.Module, EoMTImageProcessor, list[dict], StepTimes]:
    """transformers' EoMT from the same backbone in the stock Trainer, as its instance segmentation example trains
    Mask2Former: every image resized to the input size, flipped, its colors jittered; one rate for all parameters."""
    rate, schedule = BUILT_IN[options.variant]
    train, space = load_split(options, "train")
    set_seed(options.seed)
    config = EoMTConfig.for_backbone(
        options.backbone,
        image_size=options.image_size,
        task=options.task,
        **space.config_fields,
        stuff_label_ids=list(space.stuff_label_ids),
        num_queries=options.num_queries,
        train_num_points=options.num_points,
    )
    start = options.output / "start"
    EoMTForUniversalSegmentation.from_pretrained_backbone(options.weights, config).save_pretrained(start)
    model = EomtForUniversalSegmentation.from_pretrained(start)
    transform = TrainTransform(
        space, task=options.task, size=options.image_size, scale_range=(1.0, 1.0), color_jitter=True
    )
    collate = EoMTDataCollator()

    def with_float_masks(samples: list[dict]) -> dict:  # the built-in takes no bool masks
        batch = collate(samples)
        return batch | {"mask_labels": [masks.float() for masks in batch["mask_labels"]]}

    times = StepTimes()
    trainer = Trainer(
        model,
        TrainingArguments(
            str(options.output / "trainer"),
            max_steps=options.steps,
            per_device_train_batch_size=options.batch,
            learning_rate=rate,
            lr_scheduler_type=schedule,
            seed=options.seed,
            logging_steps=10,
            bf16=options.precision == "bf16",
            use_cpu=not torch.cuda.is_available(),
            disable_tqdm=True,
            save_strategy="no",
            report_to=[],
            remove_unused_columns=False,
            label_names=["mask_labels", "class_labels"],
        ),
        data_collator=with_float_masks,
        train_dataset=train.with_transform(transform),
        callbacks=[times],
    )
    trainer.train()
    folder = options.output / "built-in"
    trainer.save_model(folder)
    processor = EoMTImageProcessor(
        task=options.task, size=options.image_size, stuff_label_ids=list(space.stuff_label_ids)
    )
    ours = EoMTForUniversalSegmentation.from_pretrained(folder)  # the same numbers; masked, as its buffer says
    ours.config.task = options.task
    return ours, processor, trainer.state.log_history, times


def evaluate(model, processor, options) -> tuple[dict, list[float]]:
    """Held-out metric, and each image's own; writes the worst, the median and the best picture."""
    dataset, space = load_split(options, "val")
    dataset = dataset.with_transform(EvaluationTransform(space, task=options.task))
    key, found = TASK_ROWS[options.task].metric_key, []

    def keep(sample, prediction):
        metric = metric_for(options.task, space)
        metric.add(prediction=prediction, reference=as_reference(sample))
        found.append((metric.compute()[key], len(found), prediction))

    with torch.autocast("cpu", torch.bfloat16, enabled=False):
        metrics = evaluate_model(
            model.eval(), processor, dataset, task=options.task, label_space=space, on_image=keep, progress=False
        )
    found.sort(key=lambda entry: entry[:2])
    for name, place in zip(PICTURES, (0, len(found) // 2, len(found) - 1)):
        score, index, prediction = found[place]
        title = f"{'mIoU' if options.task == 'semantic' else key.upper()} of this image {100 * score:.0f}"
        picture = draw(dataset[index], prediction, space, options.task, title)
        picture.save(options.output / f"{name}.jpg", quality=80)
    return metrics, [score for score, *_ in sorted(found, key=lambda entry: entry[1])]


def draw(sample: dict, prediction: dict, space, task: str, title: str):
    """Photo, ground truth and prediction side by side."""
    photo = Image.fromarray(sample["image"].permute(1, 2, 0).numpy())

    shown = confident_instances(prediction, 0.5) if task == "instance" else prediction
    panels, named = [("photo", photo)], space.num_labels > 1
    for name, segments in (("ground truth", sample["reference"]), (title, shown)):
        panels.append((name, draw_prediction(photo, segments, space.id2label, names=named)))
    return side_by_side(panels, height=280)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.own_data", description=__doc__.splitlines()[0])
    parser.add_argument("variant", choices=[*OURS, *BUILT_IN])
    parser.add_argument("--data", required=True)
    parser.add_argument("--task", required=True, choices=list(TASK_ROWS))
    parser.add_argument("--weights", required=True, help="file with the backbone's weights")
    parser.add_argument("--backbone", default="vit_small_patch14_dinov2")
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--ignore-ids", metavar="IDS", help="label png values that mean unlabeled, as in eomt train")
    parser.add_argument("--alone", action="store_true", help="nothing else runs: seconds a step mean something")
    parser.add_argument("--num-queries", type=int, default=100, help="of the built-in; its own default is 200")
    parser.add_argument("--num-points", type=int, default=2048, help="of the built-in; its own default is 12544")
    parser.add_argument("--more-data", help="folder of pseudo-labels, for the variant of that name")
    parser.add_argument("--save", type=Path, metavar="FOLDER", help="keep the trained model")
    options = parser.parse_args(argv)
    if (options.variant == "pseudo-labels") != bool(options.more_data):
        raise SystemExit("the variant pseudo-labels and --more-data belong together")
    options.precision = "bf16" if cpu_has_bf16() else "fp32"
    if (options.output / "run.json").exists():
        raise SystemExit(f"{options.output} holds a finished run; choose another --output")
    options.output.mkdir(parents=True, exist_ok=True)
    register()
    train = train_built_in if options.variant in BUILT_IN else train_ours
    model, processor, log, times = train(options)
    if options.save:
        model.save_pretrained(options.save)
        processor.save_pretrained(options.save)
    metrics, scores = evaluate(model, processor, options)
    write_json(options.output / "run.json", summary(options, model, log, times, metrics, scores), indent=1)
    print(f"{options.variant} {Path(options.data).name}: {metrics[TASK_ROWS[options.task].metric_key]:.4f}")


def summary(options, model, log, times: StepTimes, metrics: dict, scores: list[float]) -> dict:
    """What the page needs of a run."""
    key = TASK_ROWS[options.task].metric_key
    names = ("variant", "task", "backbone", "seed", "steps", "batch", "alone", "image_size", "precision")
    return {name: getattr(options, name) for name in names} | {
        "data": Path(options.data).name,
        "num_queries": model.config.num_queries,
        "num_points": model.config.train_num_points,
        "metric": key,
        "value": float(metrics[key]),
        "metrics": {name: float(value) for name, value in metrics.items() if isinstance(value, (int, float))},
        "scores": [float(score) for score in scores],
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "seconds_per_step": statistics.median(times.seconds),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "log": json.loads(json.dumps([row for row in log if "loss" in row])),
    }


if __name__ == "__main__":
    main()
