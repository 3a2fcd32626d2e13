"""`eomt evaluate`: PQ, AP or mIoU of a model, or of prediction files from any tool."""

import csv
import json
import math
import os
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import Dataset
from tqdm.auto import tqdm

from .configuration import TASK_ROWS, EoMTConfig, PMTConfig
from .configuration.labels import LabelSpace, label_space
from .configuration.recipes import RECIPES
from .image_processing.inference import counted
from .loading import load_for_inference, needs_cpu_group
from .options import EvaluateOptions
from .report import ImageReport
from .results import Results
from .speed.flops import CountedModel
from .training.data import EvaluationTransform, load_data
from .training.data.load import splits_of
from .training.data.predictions import PredictionIndex, predictions_folder, read_predictions
from .training.data.rows import LISTED, UnknownClass
from .training.evaluation import evaluate_model, metric_for, score
from .training.files import finite, read_json, require_writable, write_json
from .training.processes import gather, rank

SHOWN_CLASSES = 40  # at most in the printed table; per_class.csv has all
COLUMNS = {  # of the printed table: keys of the metric and their names in papers
    "panoptic": [
        ("pq", "PQ"), ("sq", "SQ"), ("rq", "RQ"),
        ("pq_things", "PQ th"), ("sq_things", "SQ th"), ("rq_things", "RQ th"),
        ("pq_stuff", "PQ st"), ("sq_stuff", "SQ st"), ("rq_stuff", "RQ st"),
    ],
    "instance": [
        ("ap", "AP"), ("ap_50", "AP50"), ("ap_75", "AP75"),
        ("ap_small", "AP S"), ("ap_medium", "AP M"), ("ap_large", "AP L"),
    ],
    "semantic": [("mean_iou", "mIoU"), ("mean_accuracy", "mAcc"), ("overall_accuracy", "aAcc")],
}  # fmt: skip
CLASS_COLUMNS = {"panoptic": ["pq", "sq", "rq"], "instance": ["ap", "ap_50", "ap_75"], "semantic": ["iou", "accuracy"]}


def evaluate(source: str | None, options: EvaluateOptions) -> int:
    """Score a model or `options.predictions`, then print and write the report. Returns the exit code."""
    require_options(source, options)
    for folder in (options.output, options.save_predictions):
        if folder:
            require_writable(folder)
    device = options.device
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        state = PartialState(cpu=needs_cpu_group(device))  # joins the processes, on CPUs with gloo
        device = device or str(state.device)
    model = processor = None
    if source:
        model, processor = load_for_inference(
            source,
            device,
            task=options.task,
            masked=options.masked,
            token_merging=options.token_merging,
            merging_layers=options.merging_layers,
            dtype=getattr(torch, options.dtype),
            num_requests=None,
        )
    task = processor.task if processor else options.task
    rows, space = evaluation_data(
        options.data,
        task,
        model,
        dataset=options.dataset,
        split=options.split,
        ignore_ids=list(options.ignore_ids),
        keep_empty=options.keep_empty,
        crowds_as_instances=options.crowds_as_instances,
    )
    if options.predictions:
        written = PredictionIndex.find(predictions_folder(options.predictions))
        space = written.named(space) if written else space
    channels = processor.num_channels if model else None
    dataset = rows.with_transform(EvaluationTransform(space, task=task, num_channels=channels))
    report = ImageReport(task, space, options.worst)
    if model:
        result = score_model(source, options, model, processor, dataset, space, report)
    else:
        result = score_files(options, task, dataset, space, report)
    report.gathered()
    if rank() == 0:
        summary = {
            "task": task,
            "data": options.data,
            "split": options.split,
            "images": len(dataset),
            "keep_empty": options.keep_empty,
            "images_without_annotations": count_empty(rows),
            "of": source or options.predictions,
            "classes": space.name,
            "token_merging": options.token_merging,
            "metrics": result,
            "reported": reported_results(model.config, task, space) if model else [],
        }
        write_report(options, summary, space, report)
    return 0


def require_options(source: str | None, options: EvaluateOptions) -> None:
    """Raise `ValueError` for options that contradict each other or would have no effect."""
    if (source is None) == (options.predictions is None):
        raise ValueError("give either a model or --predictions")
    if options.predictions:
        if not options.task:
            raise ValueError(f"--predictions needs --task: {', '.join(TASK_ROWS)}")
        for name in ("save_predictions", "token_merging", "masked"):
            if getattr(options, name) is not None:
                option = name.replace("_", "-")
                raise ValueError(f"--{option} needs a model and cannot be used with --predictions")
    if options.worst and not options.output:
        raise ValueError("--worst needs --output, the folder for its images")


# --- data ------------------------------------------------------------------------------------------------------------


def evaluation_data(
    path: str, task: str, model=None, *, dataset: str = "auto", split: str = "val", **options
) -> tuple[Dataset, LabelSpace]:
    """Rows and label space of a split. With a model, the labels are those of the model.

    Args:
        path: folder or zip of the data set.
        dataset: format of the data.
        options: `ignore_ids`, `keep_empty` and `crowds_as_instances` of `load_data`.

    Raises:
        ValueError: if the classes of the data are not those of the model.
    """
    wanted = LabelSpace.from_config(model.config, model.config.name_or_path) if model else None
    held_out = scores_held_out(path, dataset, task, split, model, options.get("crowds_as_instances", False))
    options |= {"task": task, "split": split, "automatic_split": held_out}
    try:
        rows, space = load_data(path, dataset, label_space=wanted, **options)
        if held_out:
            print(f"note: {path} has no val split; evaluating the {len(rows)} held-out images", file=sys.stderr)
        return rows, space
    except UnknownClass as error:
        rows, space = load_data(path, dataset, **options)
        if space.num_labels != wanted.num_labels:
            hint = "; --ignore-ids leaves out values of the label images" if task == "semantic" else ""
            raise ValueError(f"{error}; the data has {space.num_labels} classes{hint}") from None
        moved = [name for i, name in enumerate(space.names) if wanted.label2id.get(name, i) != i]
        if moved:
            reason = f"they cannot be matched by position, as {moved[0]!r} has another position in the model"
            raise ValueError(f"{error}; {reason}") from None
        note = f"the class names of model and data differ; the {space.num_labels} classes are matched by position"
        print(f"note: {note}", file=sys.stderr)
        return rows, space


def scores_held_out(path: str, dataset: str, task: str, split: str, model, crowds: bool) -> bool:
    """Whether to score only the images that `eomt train` holds out from data without a validation split.

    True if the data has only a training split. Data without splits is scored completely, unless the model was trained
    on the images that are not held out.
    """
    if split != "val":
        return False
    splits = splits_of(path, dataset, task)
    if splits or model is None:
        return splits == ["train"]
    folder = Path(model.config.name_or_path)  # of the run, or of a checkpoint in it
    records = [file for file in (folder / "split.json", folder.parent / "split.json") if file.is_file()]
    if not records:
        return False
    rows, _ = load_data(path, dataset, task=task, split=split, automatic_split=True, crowds_as_instances=crowds)
    trained = read_json(records[0])
    return isinstance(trained, dict) and trained.get("val") == rows.with_format(None)["file_name"][:]


def count_empty(rows: Dataset) -> int | None:
    """Number of images without annotations; None for label images, which would have to be read again."""
    plain = rows.with_format(None)
    if plain[0]["layout"] not in LISTED:
        return None
    return sum(not segments for segments in plain["segments"])


# --- scores ----------------------------------------------------------------------------------------------------------


def score_model(source: str, options: EvaluateOptions, model, processor, dataset, space: LabelSpace, report) -> dict:
    """Segment and score the images, and write the predictions if asked to. Returns the metric's results."""
    files, names = None, []
    if options.save_predictions:
        missing = [name for name, i in zip(space.names, space.dataset_ids) if i < 0]
        if missing:
            raise ValueError(f"class {missing[0]!r} has no id in {options.data}; its predictions cannot be written")
        run = {"model": source, "data": options.data, "split": options.split}
        files = Results(options.save_predictions, processor.task, space, run)

    def on_image(sample: dict, prediction) -> None:
        if files:
            image_id = sample["image_id"]
            names.append(image_id if isinstance(image_id, str) else str(Path(sample["file_name"]).with_suffix("")))
            files.write(names[-1], sample["file_name"], prediction, image_id)
        if options.output:
            report(sample, prediction)

    called = model if options.token_merging is None else CountedModel(model)
    result = evaluate_model(
        called,
        processor,
        dataset,
        task=processor.task,
        label_space=space,
        batch_size=options.batch_size,
        num_workers=options.workers,
        intermediate=bool(options.masked),
        on_image=on_image,
    )
    if called is not model:
        result["gflops_per_image"] = sum(gather(called.flops)) / len(dataset) / 1e9
    if files:
        everyones = [name for part in gather(names) for name in part]
        if rank() == 0:
            files.finish(sorted(everyones))
    return result


def score_files(options: EvaluateOptions, task: str, dataset, space: LabelSpace, report) -> dict:
    """Score prediction files, in the main process. Returns the metric's results."""
    pairs = read_predictions(options.predictions, task, space, dataset) if rank() == 0 else ()
    pairs = tqdm(pairs, total=len(dataset), desc="scoring", leave=False)
    scored = ((sample, [prediction]) for sample, prediction in pairs)
    return score(scored, {"": metric_for(task, space)}, report if options.output else None)


def reported_results(config, task: str, space: LabelSpace) -> list[dict]:
    """Results in the paper or its model zoo for the same data, task and architecture."""
    fields = ("model_type", "hidden_size", "num_hidden_layers", "num_blocks", "num_queries", "patch_size", "image_size")
    found = []
    for recipe in RECIPES.values():
        if recipe.task != task or label_space(f"{recipe.dataset}_{task}").names != space.names:
            continue
        config_class = PMTConfig if recipe.architecture == "pmt" else EoMTConfig
        theirs = config_class.for_backbone(
            recipe.backbone, image_size=recipe.image_size, num_blocks=recipe.num_blocks, num_queries=recipe.num_queries
        )
        if all(getattr(theirs, name) == getattr(config, name) for name in fields):
            where = f"{recipe.reported.metric}, {recipe.reported.table}: {recipe.name}"
            found.append({"recipe": recipe.name, "where": where, "percent": recipe.reported.value})
    return found


# --- the report ------------------------------------------------------------------------------------------------------


def write_report(options: EvaluateOptions, summary: dict, space: LabelSpace, report: ImageReport) -> None:
    """Write the files to --output and print the tables, or JSON."""
    result, task = summary["metrics"], summary["task"]
    classes = class_rows(result, task, space)
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        write_classes(classes, options.output / "per_class.csv")
        report.draw_confusion(options.output / "confusion.png")
        if options.worst:
            summary["worst"] = report.draw_worst(options.output / "worst")
        write_json(options.output / "metrics.json", summary, indent=2)
    if options.json:
        print(json.dumps(finite(summary)))
        return
    print(metric_table(result, task, [(row["where"], row["percent"]) for row in summary["reported"]]))
    if len(classes) <= SHOWN_CLASSES:
        print(class_table(classes, task))
    images, empty = counted(summary["images"]), summary["images_without_annotations"]
    if not options.keep_empty:
        print(f"{images}; those without annotations are left out (--no-keep-empty)")
    elif empty:
        print(f"{images}, {empty} of them without annotations; --no-keep-empty leaves these out")
    else:
        print(images)
    if "gflops_per_image" in result:
        print(f"{result['gflops_per_image']:.2f} GFLOPs per image with token merging at {options.token_merging:g}")
    if options.output:
        worst = ", worst/" if options.worst else ""
        print(f"metrics.json, per_class.csv, confusion.png{worst}: {options.output}")


def is_missing(value) -> bool:
    """Whether a metric is undefined: NaN, or −1 in COCO's evaluation."""
    return isinstance(value, float) and (math.isnan(value) or value < 0)


def percent(value) -> str:
    return "–" if value in ("", None) or is_missing(value) else f"{100 * value:.2f}"


def metric_table(result: dict, task: str, reported: list[tuple[str, float]] = ()) -> str:
    """The main metrics in percent, those of intermediate predictions, and the paper's results [(where, percent), …]."""
    prefix = f"{TASK_ROWS[task].metric_key}_block_"
    blocks = sorted(int(key.removeprefix(prefix)) for key in result if key.startswith(prefix))
    columns = [(key, name) for key, name in COLUMNS[task] if key in result]
    lines = ["".join(f"{name:>9}" for _, name in columns)]
    lines.append("".join(f"{percent(result[key]):>9}" for key, _ in columns))
    for block in blocks:
        keys = [f"{key}_block_{block}" for key, _ in columns]
        cells = [f"{percent(result[key]):>9}" for key in keys if key in result]
        lines.append("".join(cells) + f"  before block {block}")
    return "\n".join(lines + [f"{value:9.2f}  {where}" for where, value in reported])


def class_rows(result: dict, task: str, space: LabelSpace) -> list[dict]:
    """One row per class, with fractions in [0, 1]. Without ground truth and predictions they are blank."""
    rows: list[dict] = []
    for label, name in enumerate(space.names):
        if task == "semantic":
            values = {"iou": result["per_category_iou"][label], "accuracy": result["per_category_accuracy"][label]}
        else:
            values = dict(result["per_class"][label])
            if task == "panoptic" and not values["tp"] + values["fp"] + values["fn"]:
                values |= dict.fromkeys(("pq", "sq", "rq"), math.nan)
        values = {key: "" if is_missing(value) else value for key, value in values.items()}
        rows.append({"label": label, "name": name, "dataset_id": space.dataset_ids[label]} | values)
    return rows


def class_table(rows: list[dict], task: str) -> str:
    """The main metrics of each class in percent."""
    columns = [name for name in CLASS_COLUMNS[task] if name in rows[0]]
    lines = ["".join(f"{name.replace('_', ''):>9}" for name in columns)]
    lines += ["".join(f"{percent(row[name]):>9}" for name in columns) + f"  {row['name']}" for row in rows]
    return "\n".join(lines)


def write_classes(rows: list[dict], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
