"""The numbers the paper reports (EoMT, CVPR 2025), and those of the authors' model zoo, machine readable.

`REPORTED` holds one `Reported` per printed result; `reported_for(recipe)` finds what a recipe should reach.
COCO and ADE20K are val splits. FPS: H100, batch 1, mixed precision, torch.compile (§4.1). GFLOPs: fvcore, one
multiply-add counted as one. Blanks in the paper are None here.
"""

from dataclasses import dataclass

from .tasks import TASK_ROWS

METRICS = {task: row.metric for task, row in TASK_ROWS.items()}


@dataclass(frozen=True)
class Reported:
    """One printed result."""

    table: str
    "Where it is printed: a table of the paper, or `model zoo` (the authors' repository)."
    method: str
    backbone: str
    pretraining: str
    dataset: str
    "coco, ade20k, cityscapes or bravo."
    image_size: str
    "Pixels: `640²`, or `1024×2048`."
    metric: str
    value: float
    "Percent."
    parameters: float | None = None
    "Millions, the whole model."
    gflops: float | None = None
    "Per image, window crops included."
    fps: float | None = None
    "Images per second."
    recipe: str | None = None
    "Name of the recipe in `recipes.py` that trains this model."
    note: str = ""


ADAPTER = "ViT-Adapter + Mask2Former"  # re-implemented by the authors
MASKED = "EoMT, masked attention at inference"
SIZES = {"S": "small", "B": "base", "L": "large", "g": "giant"}
IN21K, IN1K = "DeiT-III, ImageNet-21K", "DeiT-III, ImageNet-1K"


def _table_1() -> list[Reported]:
    """From ViT-Adapter + Mask2Former to EoMT, step by step; all rows ViT-L, COCO, 640²."""
    rows = [
        (ADAPTER, 349, 830, 29, 57.1),
        ("w/o ViT-Adapter", 342, 700, 36, 56.7),
        ("w/o pixel decoder", 337, 685, 61, 56.9),
        ("w/o multi-scale", 328, 673, 64, 56.7),
        ("w/o Transformer decoder (EoMT, masked)", 316, 828, 61, 56.2),
        ("w/o masking at inference (EoMT)", 316, 669, 128, 56.0),
    ]
    return [
        Reported("Table 1", f"({i}) {method}", "ViT-L", "DINOv2", "coco", "640²", "PQ", pq, params, gflops, fps)
        for i, (method, params, gflops, fps, pq) in enumerate(rows)
    ]


def _tables_2_and_3() -> list[Reported]:
    """Pre-training and model size, COCO panoptic 640²: (params, GFLOPs, FPS, PQ) of adapter, masked EoMT, EoMT."""
    rows = [
        ("Table 2", "L", "DINOv2", (349, 830, 29, 57.1), (316, 828, 61, 56.2), (316, 669, 128, 56.0), ""),
        ("Table 2", "L", "EVA-02", (349, 829, 25, 56.7), (316, 826, 52, 56.0), (316, 667, 77, 55.5), "_eva02"),
        ("Table 2", "L", IN21K, (None, 830, 29, 53.9), (None, 828, 61, 51.0), (316, 669, 128, 50.0), "_deit3_in21k"),
        ("Table 2", "L", IN1K, (None, 830, 29, 50.4), (None, 828, 61, 45.9), (316, 669, 128, 44.3), "_deit3_in1k"),
        ("Table 3", "g", "DINOv2", (1209, 2510, 20, 57.7), (1164, 2689, 35, 57.2), (1164, 2261, 55, 57.0), ""),
        ("Table 3", "L", "DINOv2", (349, 830, 29, 57.1), (316, 828, 61, 56.2), (316, 669, 128, 56.0), ""),
        ("Table 3", "B", "DINOv2", (121, 347, 32, 54.4), (93, 286, 104, 51.5), (93, 216, 261, 50.6), ""),
        ("Table 3", "S", "DINOv2", (47, 165, 33, 50.5), (24, 89, 108, 46.1), (24, 68, 330, 44.7), ""),
    ]
    found = []
    for table, size, pretraining, *results, suffix in rows:
        for method, (params, gflops, fps, pq) in zip((ADAPTER, MASKED, "EoMT"), results):
            recipe = f"coco_panoptic_eomt_{SIZES[size]}_640{suffix}" if method == "EoMT" else None
            note = "GFLOPs are printed as DINOv2's; counted, 667" if recipe and "deit3" in recipe else ""
            row = (table, method, f"ViT-{size}", pretraining, "coco", "640²", "PQ", pq, params, gflops, fps)
            found.append(Reported(*row, recipe, note))
    return found


def _tables_4_to_6() -> list[Reported]:
    """Comparison with the state of the art: (size, GFLOPs, FPS, result) per data set."""
    short, coco = "shortest side resized", "initialised from COCO panoptic"
    m2f, kmax, swin, dinat = "Mask2Former", "kMaX-DeepLab", "Swin-L", "DiNAT-L"
    depth = "DINOv2 + Depth Anything"
    # table, method, backbone, pre-training, params, data set, metric, size, GFLOPs, FPS, result, note
    rows = [
        ("Table 4", m2f, swin, "IN21K", 216, "coco", "PQ", "800²", 868, 24, 57.8, short),
        ("Table 4", m2f, swin, "IN21K", 216, "ade20k", "PQ", "640²", None, 33, 48.1, short),
        ("Table 4", kmax, "ConvNeXt-L", "IN21K", 232, "coco", "PQ", "1281²", None, None, 58.0, ""),
        ("Table 4", kmax, "ConvNeXt-L", "IN21K", 232, "ade20k", "PQ", "1281²", 1302, None, 50.9, ""),
        ("Table 4", "OneFormer", dinat, "IN21K", 223, "coco", "PQ", "800²", 736, 20, 58.0, short),
        ("Table 4", "OneFormer", dinat, "IN21K", 223, "ade20k", "PQ", "1280²", 1369, 10, 51.5, short),
        ("Table 4", "OneFormer", dinat, "IN21K", 223, "ade20k", "PQ", "1280²", 1369, 10, 53.5, f"{short}; {coco}"),
        ("Table 4", "MaskDINO", swin, "IN21K", 223, "coco", "PQ", "800²", 1326, 14, 58.3, short),
        ("Table 4", ADAPTER, "ViT-L", "DINOv2", 349, "coco", "PQ", "640²", 830, 29, 57.1, ""),
        ("Table 4", ADAPTER, "ViT-L", "DINOv2", 349, "ade20k", "PQ", "640²", 830, 29, 51.8, coco),
        ("Table 4", ADAPTER, "ViT-L", "DINOv2", 354, "coco", "PQ", "1280²", 4817, 10, 59.7, ""),
        ("Table 4", ADAPTER, "ViT-L", "DINOv2", 354, "ade20k", "PQ", "1280²", 4817, 10, 53.0, coco),
        ("Table 4", ADAPTER, "ViT-g", "DINOv2", 1209, "coco", "PQ", "640²", 2510, 20, 57.7, ""),
        ("Table 4", ADAPTER, "ViT-g", "DINOv2", 1209, "ade20k", "PQ", "640²", 2510, 20, 52.6, coco),
        ("Table 4", ADAPTER, "ViT-g", "DINOv2", 1216, "coco", "PQ", "1280²", 13790, 6, 59.9, ""),
        ("Table 4", ADAPTER, "ViT-g", "DINOv2", 1216, "ade20k", "PQ", "1280²", 13790, 6, 54.2, coco),
        ("Table 4", "EoMT", "ViT-L", "DINOv2", 316, "coco", "PQ", "640²", 669, 128, 56.0, ""),
        ("Table 4", "EoMT", "ViT-L", "DINOv2", 316, "ade20k", "PQ", "640²", 669, 128, 50.6, coco),
        ("Table 4", "EoMT", "ViT-L", "DINOv2", 322, "coco", "PQ", "1280²", 4146, 30, 58.3, ""),
        ("Table 4", "EoMT", "ViT-L", "DINOv2", 322, "ade20k", "PQ", "1280²", 4146, 30, 51.7, coco),
        ("Table 4", "EoMT", "ViT-g", "DINOv2", 1164, "coco", "PQ", "640²", 2261, 55, 57.0, ""),
        ("Table 4", "EoMT", "ViT-g", "DINOv2", 1164, "ade20k", "PQ", "640²", 2261, 55, 51.3, coco),
        ("Table 4", "EoMT", "ViT-g", "DINOv2", 1171, "coco", "PQ", "1280²", 12712, 12, 59.2, ""),
        ("Table 4", "EoMT", "ViT-g", "DINOv2", 1171, "ade20k", "PQ", "1280²", 12712, 12, 52.8, coco),
        ("Table 5", m2f, swin, "IN21K", 216, "cityscapes", "mIoU", "1024×2048", None, 14, 83.3, short),
        ("Table 5", m2f, swin, "IN21K", 216, "ade20k", "mIoU", "640²", None, 33, 56.1, short),
        ("Table 5", "MaskDINO", swin, "IN21K", 223, "ade20k", "mIoU", "640²", None, None, 56.6, short),
        ("Table 5", "OneFormer", "ConvNeXt-XL", "IN21K", 373, "cityscapes", "mIoU", "1024×2048", 775, 7, 83.6, short),
        ("Table 5", "OneFormer", "ConvNeXt-XL", "IN21K", 373, "ade20k", "mIoU", "640²", 607, 21, 57.4, short),
        ("Table 5", "OneFormer", dinat, "IN21K", 223, "cityscapes", "mIoU", "1024×2048", 450, 14, 83.1, short),
        ("Table 5", "OneFormer", dinat, "IN21K", 223, "ade20k", "mIoU", "896²", 678, 19, 58.1, short),
        (
            "Table 5",
            "kMaX-DeepLab",
            "ConvNeXt-L",
            "IN21K",
            232,
            "cityscapes",
            "mIoU",
            "1025×2049",
            1673,
            None,
            83.5,
            "",
        ),
        (
            "Table 5",
            m2f,
            "ViT-L",
            "DINOv2 + Depth Anything",
            None,
            "cityscapes",
            "mIoU",
            "896×1792",
            None,
            None,
            84.8,
            "",
        ),
        ("Table 5", m2f, "ViT-L", depth, None, "ade20k", "mIoU", "896²", None, None, 59.4, ""),
        ("Table 5", ADAPTER, "ViT-L", "DINOv2", 351, "cityscapes", "mIoU", "1024²", 5200, 7, 84.5, ""),
        ("Table 5", ADAPTER, "ViT-L", "DINOv2", 351, "ade20k", "mIoU", "512²", 910, 21, 58.9, ""),
        ("Table 5", "EoMT", "ViT-L", "DINOv2", 319, "cityscapes", "mIoU", "1024²", 4350, 25, 84.2, ""),
        ("Table 5", "EoMT", "ViT-L", "DINOv2", 319, "ade20k", "mIoU", "512²", 721, 92, 58.4, ""),
        ("Table 6", "OneFormer", dinat, "IN21K", 223, "coco", "AP", "800²", 736, 20, 49.2, short),
        ("Table 6", m2f, swin, "IN21K", 216, "coco", "AP", "800²", 868, 24, 50.1, short),
        ("Table 6", "MaskDINO", swin, "IN21K", 223, "coco", "AP", "800²", 1326, 14, 52.3, short),
        ("Table 6", ADAPTER, "ViT-L", "DINOv2", 349, "coco", "AP", "640²", 830, 29, 47.6, ""),
        ("Table 6", ADAPTER, "ViT-L", "DINOv2", 354, "coco", "AP", "1280²", 4817, 10, 51.4, ""),
        ("Table 6", "EoMT", "ViT-L", "DINOv2", 316, "coco", "AP", "640²", 669, 128, 45.2, ""),
        ("Table 6", "EoMT", "ViT-L", "DINOv2", 322, "coco", "AP", "1280²", 4146, 30, 48.8, ""),
    ]
    task_of = {metric: task for task, metric in METRICS.items()}
    found = []
    for table, method, backbone, pretraining, params, dataset, metric, size, gflops, fps, value, note in rows:
        name = f"{dataset}_{task_of[metric]}_eomt_{SIZES.get(backbone[4:])}_{size[:-1]}" if method == "EoMT" else None
        found.append(
            Reported(
                table, method, backbone, pretraining, dataset, size, metric, value, params, gflops, fps, name, note
            )
        )
    return found


def _tables_7_to_d() -> list[Reported]:
    """Annealing (7, C), out of distribution (8, E), token merging (9), details (B), number of masked blocks (D)."""
    large = ("ViT-L", "DINOv2")
    masking = [
        ("masked in training and inference", 828, 61, 56.2, 57.1),
        ("masked in training only", 669, 128, 27.4, None),
        ("never masked", 669, 128, 53.2, 54.0),
        ("annealed", 669, 128, 56.0, 56.8),
    ]
    found = []
    for mode, gflops, fps, eomt, adapter in masking:
        found.append(Reported("Table 7", f"EoMT, {mode}", *large, "coco", "640²", "PQ", eomt, 316, gflops, fps))
        if adapter:
            found.append(Reported("Table C", f"EoMT, {mode}", *large, "coco", "640²", "PQ", eomt))
            found.append(Reported("Table C", f"{ADAPTER}, {mode}", *large, "coco", "640²", "PQ", adapter))
    ood = [("Mask2Former", ("Swin-L", "IN21K"), 83.3, 69.4, 56.8), (ADAPTER, large, 84.5, 78.0, 68.7)]
    for method, backbone, inside, outside, auprc in [*ood, ("EoMT", large, 84.2, 77.2, 89.7)]:
        found.append(Reported("Table 8", method, *backbone, "bravo", "1024²", "mIoU in-distribution", inside))
        found.append(Reported("Table 8", method, *backbone, "bravo", "1024²", "mIoU out-of-distribution", outside))
        found.append(Reported("Table E", method, *backbone, "bravo", "1024²", "AUPRC out-of-distribution", auprc))
    batch_32 = "images per second at batch 32"
    for method, gflops, throughput, miou in [
        (ADAPTER, 5200, 9, 84.5),
        (f"{ADAPTER} + ALGM", 3031, 9, 84.3),
        ("EoMT", 4350, 29, 84.2),
        ("EoMT + ALGM", 1183, 38, 84.2),
    ]:
        row = ("Table 9", method, *large, "cityscapes", "1024²", "mIoU", miou, None, gflops, throughput)
        found.append(Reported(*row, note=batch_32))
    keys = ("PQ", "PQ things", "PQ stuff", "AP", "AP large", "AP medium", "AP small")
    for i, (cost, values) in enumerate(
        [
            ((349, 830, 29), (57.1, 62.7, 48.7, 47.6, 73.2, 53.4, 23.4)),
            ((342, 700, 36), (56.7, 62.3, 48.3, 46.9, 72.7, 52.9, 22.7)),
            ((337, 685, 62), (56.9, 62.3, 48.6, 46.8, 73.1, 52.6, 22.1)),
            ((328, 673, 64), (56.7, 62.2, 48.4, 46.2, 73.1, 52.3, 21.4)),
            ((316, 828, 61), (56.2, 61.4, 48.4, 45.6, 72.1, 51.4, 20.8)),
            ((316, 669, 128), (56.0, 61.2, 48.2, 45.2, 72.2, 51.0, 20.3)),
        ]
    ):
        step = f"({i}) of Table 1"
        found += [Reported("Table B", step, *large, "coco", "640²", key, v, *cost) for key, v in zip(keys, values)]
    for blocks, gflops, fps, pq in [(9, 688, 126, 55.7), (6, 676, 127, 55.7), (4, 669, 128, 56.0), (2, 660, 128, 55.4)]:
        found.append(Reported("Table D", f"EoMT, L2 = {blocks}", *large, "coco", "640²", "PQ", pq, 316, gflops, fps))
    return found


def _model_zoo() -> list[Reported]:
    """Results only the authors' repository states."""
    rows = [
        ("ViT-S", "DINOv2", "coco", "640²", "PQ", 46.7, "coco_panoptic_eomt_small_640_2x"),
        ("ViT-B", "DINOv2", "coco", "640²", "PQ", 51.6, "coco_panoptic_eomt_base_640_2x"),
        ("ViT-S", "DINOv3", "coco", "640²", "PQ", 47.2, "coco_panoptic_eomt_small_640_2x_dinov3"),
        ("ViT-B", "DINOv3", "coco", "640²", "PQ", 53.1, "coco_panoptic_eomt_base_640_2x_dinov3"),
        ("ViT-L", "DINOv3", "coco", "640²", "PQ", 56.8, "coco_panoptic_eomt_large_640_dinov3"),
        ("ViT-L", "DINOv3", "coco", "1280²", "PQ", 58.9, "coco_panoptic_eomt_large_1280_dinov3"),
        ("ViT-L", "DINOv3", "coco", "640²", "AP", 45.9, "coco_instance_eomt_large_640_dinov3"),
        ("ViT-L", "DINOv3", "coco", "1280²", "AP", 49.9, "coco_instance_eomt_large_1280_dinov3"),
        ("ViT-L", "DINOv3", "ade20k", "512²", "mIoU", 59.5, "ade20k_semantic_eomt_large_512_dinov3"),
    ]
    found = [Reported("model zoo", "EoMT", *row[:-1], recipe=row[-1]) for row in rows]
    for method, fps in [("EoMT", 32), (ADAPTER, 17)]:
        row = ("model zoo", method, "ViT-7B", "WebSSL-DINO", "coco", "640²", "PQ", 58.4)
        found.append(Reported(*row, fps=fps, note="FPS on a B200"))
    return found


REPORTED: tuple[Reported, ...] = (
    *_table_1(),
    *_tables_2_and_3(),
    *_tables_4_to_6(),
    *_tables_7_to_d(),
    *_model_zoo(),
)


def reported_for(recipe: str) -> Reported | None:
    """Recipe name → what the authors report for it; where two tables agree on a result, the one with more columns."""
    rows = [row for row in REPORTED if row.recipe == recipe]
    return max(rows, key=lambda row: (row.parameters is not None, row.table), default=None)
