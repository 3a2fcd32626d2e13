"""Equal to the authors' code: logits of all families, resized patch kernels and positions."""

import pytest
import torch
from safetensors.torch import load_file

from eomt.modeling_eomt import load_authors_checkpoint
from eomt.modeling_eomt.resample import resample_patch_kernel, resample_positions
from tests.models import BACKBONE_OF_KIND, GOLDEN, golden_config

KINDS = list(BACKBONE_OF_KIND)


def golden(kind):
    config = golden_config(kind)
    model = load_authors_checkpoint(GOLDEN / f"{kind}.checkpoint.safetensors", config)
    io = load_file(GOLDEN / f"{kind}.io.safetensors")
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    return model, io, (io["images"].float() / 255 - mean) / std


def predictions(out):
    last = {"masks_queries_logits": out.masks_queries_logits, "class_queries_logits": out.class_queries_logits}
    return [*(out.auxiliary_logits or []), last]


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_logits_equal_the_authors(kind):
    model, io, pixels = golden(kind)
    model.set_attn_mask_probs([1] * model.config.num_blocks)
    masked = predictions(model(pixels))
    assert len(masked) == model.config.num_blocks + 1
    for index, prediction in enumerate(masked):
        mask, classes = prediction["masks_queries_logits"], prediction["class_queries_logits"]
        torch.testing.assert_close(mask, io[f"masked.mask_logits.{index}"], rtol=0, atol=1e-5)
        torch.testing.assert_close(classes, io[f"masked.class_logits.{index}"], rtol=0, atol=1e-5)

    model.set_attn_mask_probs([0] * model.config.num_blocks)
    (plain,) = predictions(model(pixels))
    torch.testing.assert_close(plain["masks_queries_logits"], io["plain.mask_logits"], rtol=0, atol=1e-5)
    torch.testing.assert_close(plain["class_queries_logits"], io["plain.class_logits"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_float64_and_bfloat16_agree_with_float32(kind):
    model, _, pixels = golden(kind)
    model.set_attn_mask_probs([0] * model.config.num_blocks)
    single = model(pixels).masks_queries_logits
    double = model.double()(pixels.double()).masks_queries_logits
    torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-5)
    half = model.bfloat16()(pixels.bfloat16()).masks_queries_logits
    assert half.dtype == torch.bfloat16
    scale = double.abs().max()
    assert (half.double() - double).abs().mean() < 0.01 * scale


def test_patch_kernels_and_positions_equal_the_authors():
    golden_resize = load_file(GOLDEN / "resize.safetensors")
    kernel = resample_patch_kernel(golden_resize["patch14"], (16, 16))
    torch.testing.assert_close(kernel, golden_resize["patch16"], rtol=0, atol=1e-5)
    positions = resample_positions(golden_resize["pos_old"][0], (7, 7), (4, 6))
    torch.testing.assert_close(positions, golden_resize["pos_new"][0], rtol=0, atol=1e-5)
