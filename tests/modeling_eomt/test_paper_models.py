"""Every model of the paper, on the meta device: no weight is allocated, every parameter is counted."""

import pytest
import torch

from eomt import EoMTConfig, EoMTForUniversalSegmentation

S, B, L, G = (f"vit_{size}_patch14_reg4_dinov2" for size in ("small", "base", "large", "giant"))
V3 = "vit_{}_patch16_dinov3"
PANOPTIC, CITYSCAPES, ADE20K = (200, 133), (100, 19), (100, 150)  # queries, labels


@pytest.mark.parametrize(("backbone", "size", "sizes_of_heads", "parameters"), [
    (S, 640, PANOPTIC, 23_975_942),
    (B, 640, PANOPTIC, 93_663_110),
    (L, 640, PANOPTIC, 316_695_686),
    (L, 1280, PANOPTIC, 321_610_886),
    (L, 1024, CITYSCAPES, 319_032_340),
    (L, 512, ADE20K, 316_020_887),
    (L, 640, (200, 80), 316_641_361),
    (L, 640, (200, 150), 316_713_111),
    (G, 640, PANOPTIC, 1_163_622_022),
    (G, 1280, PANOPTIC, 1_170_994_822),
    ("eva02_large_patch14_224", 640, PANOPTIC, 316_733_510),
    ("deit3_large_patch16_384", 640, PANOPTIC, 316_691_590),
    (V3.format("small"), 640, PANOPTIC, 23_356_934),
    (V3.format("base"), 640, PANOPTIC, 92_425_094),
    (V3.format("large"), 640, PANOPTIC, 315_032_710),
])  # fmt: skip
def test_parameters(backbone, size, sizes_of_heads, parameters):
    queries, labels = sizes_of_heads
    config = EoMTConfig.for_backbone(backbone, image_size=size, num_queries=queries, num_labels=labels)
    with torch.device("meta"):
        model = EoMTForUniversalSegmentation(config)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_the_number_of_joint_blocks_costs_no_parameter():
    counts = set()
    for blocks in (2, 4, 6, 9):  # Table D
        with torch.device("meta"):
            model = EoMTForUniversalSegmentation(EoMTConfig.for_backbone(L, num_labels=133, num_blocks=blocks))
        counts.add(sum(parameter.numel() for parameter in model.parameters()))
    assert counts == {316_695_686}


def test_parts_of_the_large_model():
    """Head 11,904,134 = queries 204,800 + classes 137,350 + mask MLP 3,148,800 + upscaling 8,413,184."""
    with torch.device("meta"):
        model = EoMTForUniversalSegmentation(EoMTConfig.for_backbone(L, num_labels=133))
    parts = {
        "query": 204_800,
        "class_predictor": 137_350,
        "mask_head": 3_148_800,
        "upscale_block": 8_413_184,
        "criterion": 0,
    }
    assert {name: sum(p.numel() for p in getattr(model, name).parameters()) for name in parts} == parts
    encoder = sum(
        p.numel() for name in ("embeddings", "layers", "layernorm") for p in getattr(model, name).parameters()
    )
    assert encoder == 304_791_552
