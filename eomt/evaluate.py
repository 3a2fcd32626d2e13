"""What `eomt evaluate` does: score a model, or files of predictions, and report."""

import json
import os
import sys
from pathlib import Path

import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoImageProcessor
from transformers.utils.logging import disable_progress_bar

from .benchmarking.flops import CountedModel
from .configuration import EoMTConfig
from .configuration.labels import LabelSpace, label_space
from .configuration.recipes import RECIPES
from .image_processing.inference import counted
from .inference.loading import load_for_inference, merge_tokens
from .inference.prediction_files import Results
from .training.data import EvaluationTransform, load_data
from .training.data.load import splits_of
from .training.data.prediction_index import PredictionIndex
from .training.data.predictions import predictions_folder, read_predictions
from .training.data.readers import UnknownClass
from .training.evaluation import as_reference, evaluate_model, metric_for
from .training.files import finite, read_json, require_writable, write_json
from .training.metrics.tables import table, write_classes
from .training.processes import gather, rank
from .training.report import ImageReport


def evaluate(args) -> None:
    """Score, print and write what the options ask for; `args` as the command's parser gives them."""
    for folder in (args.output, args.save_predictions):
        if folder:
            require_writable(Path(folder))
    start_group(args)
    model, processor = load(args) if args.model else (None, None)
    task = processor.task if processor else args.task
    dataset, space = evaluation_data(
        args.data,
        task,
        model,
        dataset=args.dataset,
        split=args.split,
        ignore_ids=args.ignore_ids,
        keep_empty=args.keep_empty,
    )
    if args.predictions:
        written = PredictionIndex.find(predictions_folder(args.predictions))
        space = written.named(space) if written else space
    dataset = dataset.with_transform(EvaluationTransform(space, task=task))
    images = ImageReport(task, space, args.worst)
    result = _score_model(args, model, processor, dataset, space, task, images) if model else None
    if result is None:
        result = _score_files(args, dataset, space, task, images)
    images.gathered()
    if rank() != 0:
        return
    summary = _summary(args, result, task, space, dataset)
    if args.output:
        folder = Path(args.output)
        folder.mkdir(parents=True, exist_ok=True)
        write_classes(result, task, space, folder / "per_class.csv")
        images.draw_confusion(folder / "confusion.png")
        if args.worst:
            summary["worst"] = images.draw_worst(folder / "worst")
        write_json(folder / "metrics.json", summary, indent=2)
    if args.json:
        print(json.dumps(finite(summary)))
    else:
        print(table(result, task, [(r["where"], r["percent"]) for r in summary["reported"]]))
        print(_images_line(summary))
        if "gflops_per_image" in result:
            print(f"{result['gflops_per_image']:.2f} GFLOPs an image with token merging at {args.token_merging:g}")
        if args.output:
            print(f"metrics.json, per_class.csv, confusion.png{', worst/' if args.worst else ''}: {args.output}")


def start_group(args) -> None:
    """Under torchrun: join the processes; on CPUs by gloo."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        from accelerate import PartialState

        from .inference.loading import needs_cpu_group

        state = PartialState(cpu=needs_cpu_group(args.device))
        args.device = args.device or str(state.device)


def load(args):
    """The model, on its device and without masked attention unless asked for, and its processor."""
    disable_progress_bar()  # of loading weights; the evaluation has its own
    dtype = getattr(torch, args.dtype)
    model = load_for_inference(args.model, args.device, masked=args.masked or None, num_requests=None, dtype=dtype)
    merge_tokens(model, args.token_merging, args.merging_layers)
    processor = AutoImageProcessor.from_pretrained(args.model, **({"task": args.task} if args.task else {}))
    return model, processor


def evaluation_data(
    path: str, task: str, model=None, *, dataset: str = "auto", split: str = "val", **options
) -> tuple[Dataset, LabelSpace]:
    """A split's rows and its label space, with the model's classes where there is a model.

    options: `ignore_ids` and `keep_empty` of `load_data`.

    Raises:
        ValueError: when the data has other classes than the model.
    """
    wanted = LabelSpace.from_config(model.config, model.config.name_or_path) if model else None
    options |= {"task": task, "split": split, "automatic_split": _scores_held_out(path, dataset, task, split, model)}
    try:
        rows, space = load_data(path, dataset, label_space=wanted, **options)
        if options["automatic_split"]:
            held_out = f"the {len(rows)} images that eomt train holds out"
            print(f"note: {path} has no val split; evaluated are {held_out}", file=sys.stderr)
        return rows, space
    except UnknownClass as error:
        rows, space = load_data(path, dataset, **options)
        if space.num_labels != wanted.num_labels:
            hint = "; --ignore-ids leaves values of the label images out" if task == "semantic" else ""
            raise ValueError(f"{error}; the data has {space.num_labels} classes{hint}") from None
        moved = [name for i, name in enumerate(space.names) if wanted.label2id.get(name, i) != i]
        if moved:
            others = f"as {moved[0]!r} has another place among the model's, they cannot be taken in order"
            raise ValueError(f"{error}; {others}") from None
        note = f"the model's class names are not the data's; its {space.num_labels} classes are taken in order"
        print(f"note: {note}", file=sys.stderr)
        return rows, space


def _scores_held_out(path: str, dataset: str, task: str, split: str, model) -> bool:
    """Whether of data without a validation split only what `eomt train` holds out is scored: where there is a training
    split, or where the model was trained on the rest. Data that names no split is whole for any other model."""
    if split != "val":
        return False
    splits = splits_of(path, dataset, task)
    folder = Path(model.config.name_or_path) if model else None
    records = [folder / "split.json", folder.parent / "split.json"] if model else []  # best/ is below the run's folder
    record = next((file for file in records if file.is_file()), None)
    if splits or record is None:
        return splits == ["train"]
    rows, _ = load_data(path, dataset, task=task, split=split, automatic_split=True)
    trained = read_json(record)
    return isinstance(trained, dict) and trained.get("val") == rows.with_format(None)["file_name"][:]


def _score_model(args, model, processor, dataset, space, task: str, images) -> dict:
    files, written = None, []
    if args.save_predictions:
        missing = [name for name, i in zip(space.names, space.dataset_ids) if i < 0]
        if missing:
            raise ValueError(f"class {missing[0]!r} has no id in {args.data}, so predictions of it cannot be written")
        run = {"model": args.model, "data": str(args.data), "split": args.split}
        files = Results(args.save_predictions, task, space, run)

    def on_image(sample, prediction):
        if files:
            image_id = sample["image_id"]
            written.append(image_id if isinstance(image_id, str) else str(Path(sample["file_name"]).with_suffix("")))
            files.write(written[-1], sample["file_name"], prediction, image_id)
        if args.output:
            images(sample, prediction)

    options = {"batch_size": args.batch_size, "num_workers": args.num_workers, "intermediate": args.masked}
    called = model if args.token_merging is None else CountedModel(model)
    result = evaluate_model(called, processor, dataset, task=task, label_space=space, on_image=on_image, **options)
    if called is not model:
        result["gflops_per_image"] = sum(gather(called.flops)) / len(dataset) / 1e9
    if files:
        names = [name for of_process in gather(written) for name in of_process]
        if rank() == 0:
            files.finish(sorted(names))
    return result


def _score_files(args, dataset, space, task: str, images) -> dict:
    metric = metric_for(task, space)
    pairs = read_predictions(args.predictions, task, space, dataset)
    for sample, prediction in tqdm(pairs, total=len(dataset), desc="scoring", leave=False):
        metric.add(prediction=prediction, reference=as_reference(sample))
        if args.output:
            images(sample, prediction)
    return metric.compute()


def _summary(args, result: dict, task: str, space, dataset) -> dict:
    return {
        "task": task,
        "data": str(args.data),
        "split": args.split,
        "images": len(dataset),
        "keep_empty": args.keep_empty,
        "images_without_annotations": _empty(dataset),
        "of": args.model or args.predictions,
        "classes": space.name,
        "token_merging": args.token_merging,
        "metrics": result,
        "reported": _reported(args, task, space),
    }


def _empty(dataset) -> int | None:
    """Images without annotations; not known of label images, which would have to be read again."""
    rows = dataset.with_format(None)
    return sum(not s for s in rows["segments"]) if rows[0]["layout"] in ("panoptic", "instance") else None


def _images_line(summary: dict) -> str:
    line, empty = counted(summary["images"]), summary["images_without_annotations"]
    if not summary["keep_empty"]:
        return f"{line}; those without annotations are left out (--no-keep-empty)"
    return f"{line}, {empty} of them without annotations; --no-keep-empty leaves these out" if empty else line


def _reported(args, task: str, space) -> list[dict]:
    """What the paper or its model zoo reports for the recipes this model may be of: same data, task, architecture."""
    if not args.model:
        return []
    fields = ("model_type", "hidden_size", "num_hidden_layers", "num_blocks", "num_queries", "patch_size", "image_size")
    config, found = AutoConfig.from_pretrained(args.model), []
    for recipe in RECIPES.values():
        if recipe.task != task or label_space(f"{recipe.dataset}_{task}").names != space.names:
            continue
        theirs = EoMTConfig.for_backbone(
            recipe.backbone, image_size=recipe.image_size, num_blocks=recipe.num_blocks, num_queries=recipe.num_queries
        )
        if all(getattr(theirs, name) == getattr(config, name) for name in fields):
            where = f"{recipe.reported.metric}, {recipe.reported.table}: {recipe.name}"
            found.append({"recipe": recipe.name, "where": where, "percent": recipe.reported.value})
    return found
