"""What `eomt evaluate --dataset bravo` does: the paper's Tables 8 and E for a model, or for files of predictions."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from .configuration.paper import REPORTED
from .evaluate import load, start_group
from .inference.writing import finite, require_writable, write_atomic, write_json
from .training.bravo import predict_images, score, train_ids
from .training.data.bravo import Bravo, BravoPredictions
from .training.metrics.out_of_distribution import confidence_levels
from .training.processes import rank, world_size


def evaluate_bravo(args) -> None:
    """Score, print, write; `args` as the command's parser gives them."""
    for folder in filter(None, (args.output, args.save_predictions)):
        require_writable(Path(folder))
    if args.task not in (None, "semantic"):
        raise ValueError(f"--dataset bravo is semantic segmentation, not {args.task}")
    args.task = "semantic"
    data = Bravo(args.data, args.subsets)
    start_group(args)
    if args.model:
        model, processor = load(args)
        train_ids([model.config.id2label[i] for i in range(model.config.num_labels)], args.model)
        options = {"batch_size": args.batch_size, "num_workers": args.num_workers}
        pairs = predict_images(model, processor, data, **options)
    else:
        files = BravoPredictions(args.predictions)
        own = map(data.__getitem__, range(rank(), len(data), world_size()))
        pairs = ((sample, files.read(sample["name"])) for sample in own)
    folder = Path(args.save_predictions) if args.save_predictions else None
    on_image = (
        None if folder is None else lambda sample, prediction: save_prediction(folder, sample["name"], prediction)
    )
    result = score(pairs, [subset.name for subset in data.subsets], len(data), on_image)
    if rank() != 0:
        return
    summary = {"data": str(args.data), "of": args.model or args.predictions, "dataset": "bravo", "metrics": result}
    summary["reported"] = [
        {"where": f"{row.metric}, {row.table}: {row.method}, {row.backbone}", "percent": row.value}
        for row in REPORTED
        if row.dataset == "bravo" and "in-distribution" not in row.metric
    ]
    if args.output:
        write_json(Path(args.output, "metrics.json"), summary, indent=2)
    print(json.dumps(finite(summary)) if args.json else table(result, summary["reported"]))


def save_prediction(folder: Path, name: str, prediction: dict) -> None:
    """The challenge's two raw files of an image: `_pred.png` of train ids, `_conf.png` of floor(65535 · confidence)."""
    labels = np.asarray(prediction["segmentation"]).astype(np.uint8)
    levels = confidence_levels(prediction["confidence"]).astype(np.uint16)
    write_atomic(folder / f"{name}_pred.png", Image.fromarray(labels).save)
    write_atomic(folder / f"{name}_conf.png", Image.fromarray(levels).save)


def table(result: dict, reported: list[dict]) -> str:
    """Percent; a dash where a subset has no such figure."""

    def line(name: str, iou: float | None, auprc: float | None, images="") -> str:
        cells = ["–" if value is None else f"{100 * value:.2f}" for value in (iou, auprc)]
        return f"{name:<20}{cells[0]:>9}{cells[1]:>9}{images!s:>8}"

    lines = [f"{'':<20}{'mIoU':>9}{'AUPRC':>9}{'images':>8}"]
    lines += [line(name, row["mean_iou"], row["auprc"], row["images"]) for name, row in result["subsets"].items()]
    lines += [line(f"{way} mean", result["mean_iou"][way], result["auprc"][way]) for way in ("arithmetic", "harmonic")]
    lines += [f"{row['percent']:9.2f}  {row['where']}" for row in reported]
    lines.append("AUPRC is averaged over synobjs and SMIYC; which mean the paper prints, it does not say")
    return "\n".join(lines)
