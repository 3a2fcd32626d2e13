"""The rows of the paper's tables as models of this library, and how the counts compare with what is printed."""

import re
from dataclasses import dataclass, field

from ..configuration.paper import REPORTED, Reported
from ..image_processing.geometry import placement
from .candidates import Candidate
from .peers import Peer

TABLES = {**{str(n): f"Table {n}" for n in range(1, 10)}, **{c: f"Table {c}" for c in "BCDE"}, "figure-1": "Table 3"}
BACKBONE = {
    "DINOv2": "vit_{}_patch14_reg4_dinov2",
    "EVA-02": "eva02_{}_patch14_224",
    "DeiT-III, ImageNet-21K": "deit3_{}_patch16_384",
    "DeiT-III, ImageNet-1K": "deit3_{}_patch16_384",
}
SIZE = {"ViT-S": "small", "ViT-B": "base", "ViT-L": "large", "ViT-g": "giant"}
LABELS = {("coco", "AP"): 80, "coco": 133, "ade20k": 150, "cityscapes": 19, "bravo": 19}
CITYSCAPES_PHOTO = (1024, 2048)
ADE20K_CROPS = 1.828  # windows of 512² a photo of ADE20K val, on average: 721 / 394.44
PHOTO_ASPECT = 4 / 3  # of the images that peers resize by their shortest side
DEVIATIONS = {  # (method, backbone, pre-training, data set): why a printed count is not ours, as far as is known
    ("(1) w/o ViT-Adapter", "ViT-L", "DINOv2", "coco"): "the printed 700 does not follow from the description",
    ("(1) of Table 1", "ViT-L", "DINOv2", "coco"): "the printed 700 does not follow from the description",
    ("EoMT", "ViT-L", "DINOv2", "ade20k"): "319 is the model of 1024², which has more positions",
    ("ViT-Adapter + Mask2Former", "ViT-L", "DINOv2", "ade20k"): "351 is the model of 1024², which has more positions",
    ("OneFormer", "ConvNeXt-XL", "IN21K", "cityscapes"): "the printed 775 is near a quarter of this image (512×1024)",
    ("OneFormer", "ConvNeXt-XL", "IN21K", "ade20k"): "the printed 607 is near a square of this side",
    ("Mask2Former", "Swin-L", "IN21K", "coco"): "the printed 868 is a mean over photos of all shapes",
}
PQ_PARTS = {"PQ": "pq", "PQ things": "pq_things", "PQ stuff": "pq_stuff"}
METRIC_KEYS = {
    **PQ_PARTS, "mIoU": "mean_iou", "AP": "ap", "AP large": "ap_large", "AP medium": "ap_medium",
    "AP small": "ap_small", "mIoU in-distribution": "mean_iou", "mIoU out-of-distribution": "mean_iou",
    "AUPRC out-of-distribution": "auprc",
}  # fmt: skip


@dataclass
class Row:
    """One line of a table: what the paper prints, and what is found here."""

    number: int
    printed: Reported
    "Of the first metric."
    metrics: dict[str, float]
    "Printed results, percent."
    model: Candidate | Peer | None = None
    inputs: float = 1.0
    "Model inputs an image."
    parameters: int | None = None
    gflops: float | None = None
    latency_ms: float | None = None
    peak_memory_bytes: int | None = None
    run: dict[str, float] = field(default_factory=dict)
    "Results of a run folder, percent."
    notes: list[str] = field(default_factory=list)


def read_table(table: str) -> list[Row]:
    """Name of a table ("Table 4") → its rows, with models where there are such."""
    grouped: dict[tuple, list[Reported]] = {}
    for reported in REPORTED:
        if reported.table == table:
            key = (reported.method, reported.backbone, reported.pretraining, reported.dataset, reported.image_size)
            grouped.setdefault((*key, reported.note), []).append(reported)
    rows = []
    for number, group in enumerate(grouped.values(), start=1):
        row = Row(number, group[0], {reported.metric: reported.value for reported in group})
        if group[0].note:
            row.notes.append(group[0].note)
        row.model, why_not = _find_model(group[0])
        if why_not:
            row.notes.append(why_not)
        if isinstance(row.model, Candidate):
            row.inputs = _inputs(group[0])
        rows.append(row)
    return rows


def _find_model(row: Reported) -> tuple[Candidate | Peer | None, str]:
    """(the model, or why there is none)."""
    task = {"PQ": "panoptic", "AP": "instance"}.get(row.metric.split()[0], "semantic")
    labels = LABELS.get((row.dataset, row.metric)) or LABELS[row.dataset]
    if row.method in ("kMaX-DeepLab", "MaskDINO"):
        return None, "no implementation here"
    if row.backbone not in SIZE:
        size = _pixels(row)
        return Peer(row.method, row.backbone, labels, size), f"counted at {size[0]}×{size[1]}"
    if row.pretraining not in BACKBONE or (row.method == "Mask2Former"):
        return None, "no implementation here"
    if "ALGM" in row.method:
        if row.method.startswith("EoMT"):
            return None, "GFLOPs depend on weights and pictures: --run with a report of eomt evaluate --token-merging"
        return None, "token merging is for EoMT here"
    options: dict = {"task": task, "num_labels": labels}
    if match := re.search(r"L2 = (\d+)", row.method):
        options["num_blocks"] = int(match[1])
    name = BACKBONE[row.pretraining].format(SIZE[row.backbone])
    return Candidate.find(name, int(row.image_size.removesuffix("²")), step=_step(row.method), **options), ""


def _step(method: str) -> int:
    if match := re.match(r"\((\d)\)", method):
        return int(match[1])
    if method.startswith("ViT-Adapter"):
        return 0
    return 4 if "masked attention at inference" in method or "masked in training and inference" in method else 5


def _pixels(row: Reported) -> tuple[int, int]:
    """A peer's input: as printed, BRAVO's as Cityscapes', or a photo of 3:4 by its shortest side."""
    if row.dataset == "bravo":
        return CITYSCAPES_PHOTO
    if "×" in row.image_size:
        height, width = map(int, row.image_size.split("×"))
        return height, width
    side = int(row.image_size.removesuffix("²"))
    return side, round(side * PHOTO_ASPECT)


def _inputs(row: Reported) -> float:
    if row.dataset in ("cityscapes", "bravo"):
        size = int(row.image_size.removesuffix("²"))
        return len(placement(*CITYSCAPES_PHOTO, size, windowed=True).windows)
    return ADE20K_CROPS if (row.dataset, row.metric) == ("ade20k", "mIoU") else 1.0


def deviates(found: float | None, printed: float | None) -> bool:
    """Whether a count is not what the paper prints: it rounds some figures up, some down and some to the nearest."""
    if found is None or printed is None:
        return False
    return abs(found - printed) >= 1


def why_deviates(row: Row) -> str | None:
    """What is known about a count of this row that is not the printed one."""
    printed = row.printed
    if not deviates(row.gflops, printed.gflops) and not deviates(
        row.parameters and row.parameters / 1e6, printed.parameters
    ):
        return None
    if printed.pretraining.startswith("DeiT-III"):
        return None if printed.note else "GFLOPs are printed as DINOv2's, which has four tokens more"
    return DEVIATIONS.get((printed.method, printed.backbone, printed.pretraining, printed.dataset))
