"""GFLOPs: all rows of EoMT in Tables 1 to 7 and D, to the printed digit, counted on the meta device."""

import math

import pytest
import torch
from torch import nn

from eomt.speed.candidates import Candidate
from eomt.speed.flops import count_flops
from tests.models import BACKBONE_OF_KIND, tiny_model

S, B, L, G = (f"vit_{size}_patch14_reg4_dinov2" for size in ("small", "base", "large", "giant"))
EVA, DEIT = "eva02_large_patch14_224", "deit3_large_patch16_384"
V3S, V3B, V3L = (f"vit_{size}_patch16_dinov3" for size in ("small", "base", "large"))
CITYSCAPES = {"num_labels": 19, "task": "semantic"}
ADE_CROPS = 1.828  # mean number of windows of an image of ADE20K val (721 / 394.44)

# backbone, size, options, and expected: parameters, GMACs of an input (fvcore's), inputs per image, printed GFLOPs
ROWS = [
    (S, 640, {}, 23_975_942, 67.96, 1, {68}),
    (S, 640, {"masked": True}, 23_975_942, 88.84, 1, {89}),
    (B, 640, {}, 93_663_110, 215.82, 1, {216}),
    (L, 640, {}, 316_695_686, 668.55, 1, {669}),
    (L, 640, {"num_blocks": 2}, 316_695_686, 660.72, 1, {660}),
    (L, 1280, {}, 321_610_886, 4146.37, 1, {4146}),
    (L, 1024, CITYSCAPES, 319_032_340, 2175.30, 2, {4350}),
    (L, 512, {"task": "semantic"}, 316_020_887, 394.44, ADE_CROPS, {721}),
    (L, 640, {"task": "instance"}, 316_641_361, 668.54, 1, {669}),
    (G, 640, {}, 1_163_622_022, 2261.34, 1, {2261}),
    (EVA, 640, {}, 316_733_510, 667.15, 1, {667}),
    (DEIT, 640, {}, 316_691_590, 666.69, 1, {667}),  # the paper has DINOv2's 669, with four more tokens
    (V3S, 640, {}, 23_356_934, 67.96, 1, set()),
]
SLOW_ROWS = [
    (B, 640, {"masked": True}, 93_663_110, 286.42, 1, {286}),
    (L, 640, {"masked": True}, 316_695_686, 828.24, 1, {828}),
    (L, 640, {"num_blocks": 6}, 316_695_686, 676.38, 1, {676}),
    (L, 640, {"num_blocks": 9}, 316_695_686, 688.12, 1, {688}),
    (L, 640, {"num_labels": 150}, 316_713_111, 668.55, 1, {669}),
    (G, 640, {"masked": True}, 1_163_622_022, 2688.95, 1, {2689}),
    (G, 1280, {}, 1_170_994_822, 12711.94, 1, {12712}),
    (EVA, 640, {"masked": True}, 316_733_510, 826.84, 1, {826}),
    (DEIT, 640, {"masked": True}, 316_691_590, 826.39, 1, {826}),
    (V3B, 640, {}, 92_425_094, 215.82, 1, set()),
    (V3L, 640, {}, 315_032_710, 668.55, 1, set()),
]


@pytest.mark.parametrize(
    ("backbone", "size", "options", "parameters", "gmacs", "inputs", "printed"),
    [*ROWS, *(pytest.param(*row, marks=pytest.mark.slow) for row in SLOW_ROWS)],
)
def test_counts_equal_the_papers(backbone, size, options, parameters, gmacs, inputs, printed):
    counted_parameters, flops = Candidate.find(backbone, size, **options).count()
    assert counted_parameters == parameters
    assert round(flops / 1e9, 2) == gmacs
    per_photo = inputs * flops / 1e9
    assert printed <= {math.floor(per_photo), round(per_photo)}  # the paper rounds some down


@pytest.mark.parametrize("kind", list(BACKBONE_OF_KIND))
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_counts_do_not_depend_on_kernel_and_device(kind, attention):
    model = tiny_model(kind)
    model.set_attn_implementation(attention)
    pixels = torch.randn(2, 3, 64, 32)
    on_cpu = count_flops(model, pixels)
    masked_blocks = model._masked_blocks
    on_meta = model.to("meta")
    on_meta._masked_blocks = masked_blocks
    assert count_flops(on_meta, pixels.to("meta")) == on_cpu > 0


@pytest.mark.parametrize(("module", "shape", "flops"), [
    (nn.Linear(6, 5), (3, 6), 3 * 6 * 5),
    (nn.Conv2d(4, 8, 3, padding=1, groups=2), (2, 4, 5, 7), 2 * 5 * 7 * 8 * 2 * 9),
    (nn.ConvTranspose2d(4, 6, 2, stride=2), (1, 4, 5, 5), 25 * 4 * 6 * 4),
    (nn.LayerNorm(6), (3, 6), 5 * 18),
    (nn.GroupNorm(2, 4), (3, 4, 5, 5), 5 * 300),
    (nn.BatchNorm2d(4), (3, 4, 5, 5), 2 * 300),
    (nn.Upsample(scale_factor=3, mode="bilinear"), (1, 2, 4, 4), 4 * 2 * 144),
    (nn.GELU(), (3, 6), 0),
    (nn.Softmax(-1), (3, 6), 0),
])  # fmt: skip
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_counts_of_single_layers(module, shape, flops, device):
    was_training = module.train().training
    assert count_flops(module.to(device), torch.rand(shape, device=device)) == flops
    assert module.training == was_training
