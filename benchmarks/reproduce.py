"""A table of the paper beside our counts and beside the results of own runs.

python -m benchmarks.reproduce 3                       # parameters and GFLOPs of Table 3, printed | here
python -m benchmarks.reproduce 2 --run 5=runs/mine     # with results of `eomt train` or `eomt evaluate --output`
"""

import argparse
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import Mask2FormerConfig, SwinConfig

from eomt.configuration.recipes import REPORTED, Reported
from eomt.image_processing.geometry import placement
from eomt.speed.candidates import Candidate
from eomt.speed.measure import text_table
from eomt.training.files import read_json

TABLES = {**{str(n): f"Table {n}" for n in range(1, 10)}, **{c: f"Table {c}" for c in "BCDE"}}
BACKBONES = {
    "DINOv2": "vit_{}_patch14_reg4_dinov2",
    "EVA-02": "eva02_{}_patch14_224",
    "DeiT-III, ImageNet-21K": "deit3_{}_patch16_384",
    "DeiT-III, ImageNet-1K": "deit3_{}_patch16_384",
}
SIZES = {"ViT-S": "small", "ViT-B": "base", "ViT-L": "large", "ViT-g": "giant"}
LABELS = {("coco", "AP"): 80, "coco": 133, "ade20k": 150, "cityscapes": 19, "bravo": 19}
CITYSCAPES_IMAGE = (1024, 2048)
ADE20K_WINDOWS = 1.828  # of 512² per image of ADE20K val, on average: 721 / 394.44 GFLOPs
DEVIATIONS = {  # (method, backbone, pre-training, data set): known reason for a printed count that is not ours
    ("(1) w/o ViT-Adapter", "ViT-L", "DINOv2", "coco"): "the printed 700 does not follow from the description",
    ("(1) of Table 1", "ViT-L", "DINOv2", "coco"): "the printed 700 does not follow from the description",
    ("EoMT", "ViT-L", "DINOv2", "ade20k"): "319 is the model of 1024², which has more positions",
    ("ViT-Adapter + Mask2Former", "ViT-L", "DINOv2", "ade20k"): "351 is the model of 1024², which has more positions",
    ("Mask2Former", "Swin-L", "IN21K", "coco"): "the printed 868 is a mean over images of all shapes",
}
METRIC_KEYS = {
    "PQ": "pq", "PQ things": "pq_things", "PQ stuff": "pq_stuff", "mIoU": "mean_iou", "AP": "ap",
    "AP large": "ap_large", "AP medium": "ap_medium", "AP small": "ap_small", "mIoU in-distribution": "mean_iou",
    "mIoU out-of-distribution": "mean_iou", "AUPRC out-of-distribution": "auprc",
}  # fmt: skip


@dataclass
class PaperRow:
    """One row of a table: the printed figures and ours."""

    number: int
    printed: Reported  # of the first metric
    metrics: dict[str, float]  # printed results (percent)
    model: Candidate | None = None
    inputs: float = 1.0  # per image
    parameters: int | None = None
    gflops: float | None = None
    run: dict[str, float] = field(default_factory=dict)  # results of a run (percent)
    notes: list[str] = field(default_factory=list)


def read_table(table: str) -> list[PaperRow]:
    """The rows of a table ("Table 4"), with their models if they exist here."""
    grouped: dict[tuple, list[Reported]] = {}
    for reported in REPORTED:
        if reported.table == table:
            key = (reported.method, reported.backbone, reported.pretraining, reported.dataset, reported.image_size)
            grouped.setdefault((*key, reported.note), []).append(reported)
    rows = []
    for number, group in enumerate(grouped.values(), start=1):
        row = PaperRow(number, group[0], {reported.metric: reported.value for reported in group})
        row.model, note = find_model(group[0])
        row.notes += [text for text in (group[0].note, note) if text]
        if row.model and row.model.is_eomt:
            row.inputs = inputs_per_image(group[0])
        rows.append(row)
    return rows


def find_model(row: Reported) -> tuple[Candidate | None, str]:
    """The model of a row and a note, or None and the reason."""
    task = {"PQ": "panoptic", "AP": "instance"}.get(row.metric.split()[0], "semantic")
    labels = LABELS.get((row.dataset, row.metric)) or LABELS[row.dataset]
    if row.method in ("kMaX-DeepLab", "MaskDINO", "OneFormer"):
        return None, "no implementation here"
    if row.backbone not in SIZES:
        height, width = peer_size(row)
        config = peer_config(row.backbone, labels)
        return Candidate(row.method, config, (height, width), pretrained=False), f"counted at {height}×{width}"
    if row.pretraining not in BACKBONES or row.method == "Mask2Former":
        return None, "no implementation here"
    if "ALGM" in row.method:
        if row.method.startswith("EoMT"):
            return None, "GFLOPs depend on weights and images: --run with a report of eomt evaluate --token-merging"
        return None, "token merging is for EoMT here"
    options: dict = {"task": task, "num_labels": labels}
    blocks = re.search(r"L2 = (\d+)", row.method)
    if blocks:
        options["num_blocks"] = int(blocks[1])
    name = BACKBONES[row.pretraining].format(SIZES[row.backbone])
    return Candidate.find(name, int(row.image_size.removesuffix("²")), step=ladder_step(row.method), **options), ""


def ladder_step(method: str) -> int:
    """The step of Table 1 for the name of a method."""
    numbered = re.match(r"\((\d)\)", method)
    if numbered:
        return int(numbered[1])
    if method.startswith("ViT-Adapter"):
        return 0
    is_masked = "masked attention at inference" in method or "masked in training and inference" in method
    return 4 if is_masked else 5


def peer_size(row: Reported) -> tuple[int, int]:
    """Input size of a peer: as printed; for BRAVO that of Cityscapes; otherwise 3:4 with the printed shortest side."""
    if row.dataset == "bravo":
        return CITYSCAPES_IMAGE
    if "×" in row.image_size:
        height, width = map(int, row.image_size.split("×"))
        return height, width
    side = int(row.image_size.removesuffix("²"))
    return side, round(side * 4 / 3)


def inputs_per_image(row: Reported) -> float:
    if row.dataset in ("cityscapes", "bravo"):
        size = int(row.image_size.removesuffix("²"))
        return len(placement(*CITYSCAPES_IMAGE, size, windowed=True).windows)
    return ADE20K_WINDOWS if (row.dataset, row.metric) == ("ade20k", "mIoU") else 1.0


def deviates(found: float | None, printed: float | None) -> bool:
    """Whether a count is not the printed figure. The paper rounds up, down and to the nearest, so by 1 or more."""
    return found is not None and printed is not None and abs(found - printed) >= 1


def why_deviates(row: PaperRow) -> str | None:
    """The known reason for a count of this row that is not the printed one."""
    printed = row.printed
    millions = None if row.parameters is None else row.parameters / 1e6
    if not deviates(row.gflops, printed.gflops) and not deviates(millions, printed.parameters):
        return None
    if printed.pretraining.startswith("DeiT-III"):
        return None if printed.note else "the printed GFLOPs are DINOv2's, with four tokens more"
    return DEVIATIONS.get((printed.method, printed.backbone, printed.pretraining, printed.dataset))


def add_run(row: PaperRow, folder: Path) -> None:
    """Add the results of `eomt train` (results.json) or `eomt evaluate --output` (metrics.json) to a row.

    Raises:
        ValueError: if the folder has no result for the metrics of the row.
    """
    metrics, results = folder / "metrics.json", folder / "results.json"
    if metrics.is_file():
        report = read_json(metrics)
        found, dataset = report["metrics"], report.get("dataset")
    else:
        found, dataset = {key.removeprefix("eval_"): value for key, value in read_json(results).items()}, None
    taken = {}
    for metric in row.metrics:
        value = found.get(METRIC_KEYS.get(metric))
        if isinstance(value, dict):  # means over the subsets of BRAVO; the paper does not name its mean
            value = value["arithmetic"]
        elif metric.endswith("out-of-distribution"):
            continue
        if isinstance(value, float | int) and not (metric.endswith("in-distribution") and dataset == "bravo"):
            taken[metric] = 100 * value
    if not taken:
        raise ValueError(f"{folder}: its results have none of {', '.join(row.metrics)}")
    row.run |= taken
    if row.model is None and "gflops_per_image" in found:  # counted during the evaluation: tokens merge by image
        row.gflops = found["gflops_per_image"]


def count(row: PaperRow) -> None:
    """Fill in parameters and GFLOPs per image. Nothing is computed."""
    if row.model is None:
        return
    if row.model.is_eomt:
        row.parameters, flops = row.model.count()
    else:
        with torch.device("meta"):
            peer = row.model.load(torch.device("meta"), torch.float32)
        with WithoutValues():
            row.parameters, flops = row.model.count(peer)
    row.gflops = row.inputs * flops / 1e9
    reason = why_deviates(row)
    if reason:
        row.notes.append(reason)


def paper_report(rows: list[PaperRow]) -> str:
    """The table as aligned text: printed figures, ours beside them, and ≠ for other counts."""

    def pair(printed, found) -> str:
        if printed is None and found is None:
            return "–"
        left = "–" if printed is None else f"{printed:g}"
        right = "–" if found is None else f"{found:.2f}"
        return f"{left} | {right}{'≠' if deviates(found, printed) else ''}"

    def result(row: PaperRow) -> str:
        cells = []
        for metric, value in row.metrics.items():
            here = f" | {row.run[metric]:.1f}" if metric in row.run else ""
            cells.append(f"{metric} {value:.1f}{here}")
        return ", ".join(cells)

    lines = [["", "method", "backbone", "data", "params M", "GFLOPs", "FPS", "result"]]
    for row in rows:
        printed = row.printed
        lines.append([
            str(row.number), printed.method, f"{printed.backbone} {printed.pretraining}",
            f"{printed.dataset} {printed.image_size}",
            pair(printed.parameters, row.parameters and row.parameters / 1e6), pair(printed.gflops, row.gflops),
            "–" if printed.fps is None else f"{printed.fps:g}",
            result(row),
        ])  # fmt: skip
    notes = [f"{row.number}: {note}" for row in rows for note in row.notes]
    return "\n".join([text_table(lines), "printed | here; ≠: our count is not the printed figure", *notes])


# --- the models of Tables 4 to 6 that are not built on a plain ViT ---------------------------------------------------


def peer_config(backbone: str, num_labels: int) -> Mask2FormerConfig:
    """transformers' Mask2Former with Swin-T or Swin-L, in the published sizes."""
    stages = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
    if backbone == "Swin-T":
        encoder = SwinConfig(embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], window_size=7, **stages)
    else:
        encoder = SwinConfig(embed_dim=192, depths=[2, 2, 18, 2], num_heads=[6, 12, 24, 48], window_size=12, **stages)
    queries = 100 if backbone == "Swin-T" else 200
    return Mask2FormerConfig(backbone_config=encoder, num_queries=queries, num_labels=num_labels)


class WithoutValues(TorchFunctionMode):
    """Answers questions about the values of meta tensors, which have none: checks pass, and no mask is empty."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.where and len(args) == 1 and args[0].is_meta:
            return tuple(torch.empty(0, dtype=torch.long, device="meta") for _ in range(args[0].ndim))
        if func is Tensor.item and args[0].is_meta and args[0].dtype is torch.bool:
            return True
        return func(*args, **(kwargs or {}))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--run", action="append", default=[], metavar="ROW=FOLDER", help="results of a run for a row")
    args = parser.parse_args(argv)
    rows = read_table(TABLES[args.table])
    for entry in args.run:
        number, _, folder = entry.partition("=")
        add_run(rows[int(number) - 1], Path(folder))
    for row in rows:
        count(row)
    print(paper_report(rows))


if __name__ == "__main__":
    main()
