"""A table of the paper beside what is counted and measured here.

python -m benchmarks.reproduce 3                                  # parameters and GFLOPs of Table 3, printed | here
python -m benchmarks.reproduce 1 --measure --device cuda          # latency and memory too, with random weights
python -m benchmarks.reproduce 2 --run 5=runs/mine                # results of `eomt train` or `eomt evaluate --output`
"""

import argparse
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import (
    ConvNextConfig,
    DinatConfig,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    OneFormerConfig,
    OneFormerForUniversalSegmentation,
    SwinConfig,
)
from transformers.utils import is_natten_available

from eomt.configuration.recipes import REPORTED, Reported
from eomt.image_processing.geometry import placement
from eomt.speed.candidates import ONEFORMER_TASK_TOKENS, Candidate
from eomt.speed.flops import count_flops
from eomt.speed.measure import measure_seconds, peak_bytes, text_table
from eomt.training.files import read_json, write_json

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
ADE20K_WINDOWS = 1.828
"""Windows of 512² an image of ADE20K val, on average: 721 / 394.44 GFLOPs."""
DEVIATIONS = {  # (method, backbone, pre-training, data set): why a printed count is not ours, as far as is known
    ("(1) w/o ViT-Adapter", "ViT-L", "DINOv2", "coco"): "the printed 700 does not follow from the description",
    ("(1) of Table 1", "ViT-L", "DINOv2", "coco"): "the printed 700 does not follow from the description",
    ("EoMT", "ViT-L", "DINOv2", "ade20k"): "319 is the model of 1024², which has more positions",
    ("ViT-Adapter + Mask2Former", "ViT-L", "DINOv2", "ade20k"): "351 is the model of 1024², which has more positions",
    ("OneFormer", "ConvNeXt-XL", "IN21K", "cityscapes"): "the printed 775 is near a quarter of this image (512×1024)",
    ("OneFormer", "ConvNeXt-XL", "IN21K", "ade20k"): "the printed 607 is near a square of this side",
    ("Mask2Former", "Swin-L", "IN21K", "coco"): "the printed 868 is a mean over images of all shapes",
}
METRIC_KEYS = {
    "PQ": "pq", "PQ things": "pq_things", "PQ stuff": "pq_stuff", "mIoU": "mean_iou", "AP": "ap",
    "AP large": "ap_large", "AP medium": "ap_medium", "AP small": "ap_small", "mIoU in-distribution": "mean_iou",
    "mIoU out-of-distribution": "mean_iou", "AUPRC out-of-distribution": "auprc",
}  # fmt: skip


@dataclass
class PaperRow:
    """One line of a table: what the paper prints, and what is found here."""

    number: int
    printed: Reported
    "Of the first metric."
    metrics: dict[str, float]
    "Printed results, percent."
    model: "Candidate | Peer | None" = None
    inputs: float = 1.0
    "Model inputs an image."
    parameters: int | None = None
    gflops: float | None = None
    latency_ms: float | None = None
    peak_memory_bytes: int | None = None
    run: dict[str, float] = field(default_factory=dict)
    "Results of a run's folder, percent."
    notes: list[str] = field(default_factory=list)


def read_table(table: str) -> list[PaperRow]:
    """Name of a table ("Table 4") → its rows, with models where there are such."""
    grouped: dict[tuple, list[Reported]] = {}
    for reported in REPORTED:
        if reported.table == table:
            key = (reported.method, reported.backbone, reported.pretraining, reported.dataset, reported.image_size)
            grouped.setdefault((*key, reported.note), []).append(reported)
    rows = []
    for number, group in enumerate(grouped.values(), start=1):
        row = PaperRow(number, group[0], {reported.metric: reported.value for reported in group})
        row.model, why_not = find_model(group[0])
        row.notes += [note for note in (group[0].note, why_not) if note]
        if isinstance(row.model, Candidate):
            row.inputs = inputs_per_image(group[0])
        rows.append(row)
    return rows


def find_model(row: Reported) -> "tuple[Candidate | Peer | None, str]":
    """The row's model, or None and the reason."""
    task = {"PQ": "panoptic", "AP": "instance"}.get(row.metric.split()[0], "semantic")
    labels = LABELS.get((row.dataset, row.metric)) or LABELS[row.dataset]
    if row.method in ("kMaX-DeepLab", "MaskDINO"):
        return None, "no implementation here"
    if row.backbone not in SIZES:
        size = peer_size(row)
        return Peer(row.method, row.backbone, labels, size), f"counted at {size[0]}×{size[1]}"
    if row.pretraining not in BACKBONES or row.method == "Mask2Former":
        return None, "no implementation here"
    if "ALGM" in row.method:
        if row.method.startswith("EoMT"):
            return None, "GFLOPs depend on weights and images: --run with a report of eomt evaluate --token-merging"
        return None, "token merging is for EoMT here"
    options: dict = {"task": task, "num_labels": labels}
    if match := re.search(r"L2 = (\d+)", row.method):
        options["num_blocks"] = int(match[1])
    name = BACKBONES[row.pretraining].format(SIZES[row.backbone])
    return Candidate.find(name, int(row.image_size.removesuffix("²")), step=ladder_step(row.method), **options), ""


def ladder_step(method: str) -> int:
    if match := re.match(r"\((\d)\)", method):
        return int(match[1])
    if method.startswith("ViT-Adapter"):
        return 0
    return 4 if "masked attention at inference" in method or "masked in training and inference" in method else 5


def peer_size(row: Reported) -> tuple[int, int]:
    """A peer's input: as printed, BRAVO's as Cityscapes', or an image of 3:4 by its shortest side."""
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
    """Whether a count is not what the paper prints: it rounds some figures up, some down and some to the nearest."""
    return found is not None and printed is not None and abs(found - printed) >= 1


def why_deviates(row: PaperRow) -> str | None:
    """What is known about a count of this row that is not the printed one."""
    printed = row.printed
    millions = row.parameters and row.parameters / 1e6
    if not deviates(row.gflops, printed.gflops) and not deviates(millions, printed.parameters):
        return None
    if printed.pretraining.startswith("DeiT-III"):
        return None if printed.note else "GFLOPs are printed as DINOv2's, which has four tokens more"
    return DEVIATIONS.get((printed.method, printed.backbone, printed.pretraining, printed.dataset))


def add_run(row: PaperRow, folder: Path) -> None:
    """Take the results of `eomt train` (results.json) or `eomt evaluate --output` (metrics.json) into a row.

    Raises:
        ValueError: when the folder has no result of the row's metrics.
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
        if isinstance(value, dict):  # BRAVO's are averaged over its subsets; the paper does not say how
            value = value["arithmetic"]
        elif metric.endswith("out-of-distribution"):
            continue
        if isinstance(value, float | int) and not (metric.endswith("in-distribution") and dataset == "bravo"):
            taken[metric] = 100 * value
    if not taken:
        raise ValueError(f"{folder}: its results have none of {', '.join(row.metrics)}")
    row.run |= taken
    if row.model is None and "gflops_per_image" in found:  # of token merging: by the tokens really left
        row.gflops = found["gflops_per_image"]


def count(row: PaperRow) -> None:
    if row.model is None:
        return
    try:
        row.parameters, flops = row.model.count()
    except ValueError as reason:
        row.notes.append(str(reason))
        return
    row.gflops = row.inputs * flops / 1e9
    if known := why_deviates(row):
        row.notes.append(known)


def measure(row: PaperRow, device: torch.device, warm_up: int, repeats: int) -> None:
    """Latency of one image, all its windows, and the memory it takes, with random weights."""
    if row.model is None or row.parameters is None:
        return
    model = row.model.load(device, torch.float32)
    inputs = row.model.inputs(round(row.inputs), device)

    def run():
        with torch.inference_mode():
            model(**inputs)

    row.latency_ms = 1e3 * measure_seconds(run, device, warm_up, repeats)["median"]
    row.peak_memory_bytes = peak_bytes(run, model, device)


def report(rows: list[PaperRow]) -> str:
    """Aligned text: printed figures, ours beside them, and marks where a count is another."""

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

    lines = [["", "method", "backbone", "data", "params M", "GFLOPs", "FPS", "ms here", "GiB here", "result"]]
    for row in rows:
        printed = row.printed
        lines.append([
            str(row.number), printed.method, f"{printed.backbone} {printed.pretraining}",
            f"{printed.dataset} {printed.image_size}",
            pair(printed.parameters, row.parameters and row.parameters / 1e6), pair(printed.gflops, row.gflops),
            "–" if printed.fps is None else f"{printed.fps:g}",
            "–" if row.latency_ms is None else f"{row.latency_ms:.0f}",
            "–" if row.peak_memory_bytes is None else f"{row.peak_memory_bytes / 2**30:.2f}",
            result(row),
        ])  # fmt: skip
    notes = [f"{row.number}: {note}" for row in rows for note in row.notes]
    return "\n".join([text_table(lines), "printed | here; ≠: our count is not the printed figure", *notes])


@dataclass
class Peer:
    """A model of Tables 4 to 6 that is not built on a plain ViT: transformers' classes, published architectures."""

    method: str
    backbone: str
    num_labels: int
    image_size: tuple[int, int]

    def count(self) -> tuple[int, int]:
        """(parameters, multiply-adds of one image at `image_size`), on the meta device.

        Raises:
            ValueError: when a package for the architecture is missing.
        """
        meta = torch.device("meta")
        with meta:
            model = self.load(meta)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        with _WithoutValues():
            return parameters, count_flops(model, **self.inputs(1, meta))

    def load(self, device: torch.device, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The model with random weights, in evaluation mode."""
        if self.method == "Mask2Former":
            config = Mask2FormerConfig(backbone_config=self._backbone(), num_queries=200, num_labels=self.num_labels)
            model = Mask2FormerForUniversalSegmentation(config)
        else:
            queries = 150 if self.num_labels in (80, 133) else 250  # OneFormer's own: COCO; ADE20K and Cityscapes
            config = OneFormerConfig(
                backbone_config=self._backbone(), num_queries=queries, num_labels=self.num_labels, is_training=False
            )
            model = OneFormerForUniversalSegmentation(config)
        return model.eval().to(device, dtype)

    def inputs(self, batch: int, device: torch.device) -> dict[str, Tensor]:
        """Random images (batch, 3, H, W), and OneFormer's task text, of blanks."""
        inputs = {"pixel_values": torch.rand(batch, 3, *self.image_size, device=device)}
        if self.method == "OneFormer":
            inputs["task_inputs"] = torch.zeros(batch, ONEFORMER_TASK_TOKENS, dtype=torch.long, device=device)
        return inputs

    def _backbone(self):
        stages = ["stage1", "stage2", "stage3", "stage4"]
        if self.backbone == "Swin-L":
            return SwinConfig(
                embed_dim=192, depths=[2, 2, 18, 2], num_heads=[6, 12, 24, 48], window_size=12, out_features=stages
            )
        if self.backbone == "ConvNeXt-XL":
            widths = [256, 512, 1024, 2048]
            return ConvNextConfig(hidden_sizes=widths, depths=[3, 3, 27, 3], out_features=stages)
        if not is_natten_available():
            raise ValueError("DiNAT needs the package natten, which is not installed")
        return DinatConfig(
            embed_dim=192, depths=[3, 4, 18, 5], num_heads=[6, 12, 24, 48], kernel_size=11, mlp_ratio=2.0,
            out_features=stages, dilations=[[1, 20, 1], [1, 5, 1, 10], [1, 2, 1, 3, 1, 4] * 3, [1, 2, 1, 2, 1]],
        )  # fmt: skip


class _WithoutValues(TorchFunctionMode):
    """Answers what these models ask of values, which meta tensors have not: checks pass, and no mask is empty."""

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
    parser.add_argument("--measure", action="store_true", help="measure latency and memory here")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file for the parameters, GFLOPs, times and results")
    args = parser.parse_args(argv)
    rows = read_table(TABLES[args.table])
    for entry in args.run:
        number, _, folder = entry.partition("=")
        add_run(rows[int(number) - 1], Path(folder))
    for row in rows:
        count(row)
        if args.measure:
            measure(row, torch.device(args.device), args.warm_up, args.repeats)
    print(report(rows))
    if args.json:
        names = ("number", "metrics", "parameters", "gflops", "latency_ms", "peak_memory_bytes", "run", "notes")
        write_json(args.json, [{name: getattr(row, name) for name in names} for row in rows], indent=2)


if __name__ == "__main__":
    main()
