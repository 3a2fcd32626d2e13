"""Equal to PMT's code: logits with and without masks, and a training pass with its batch-norm statistics."""

import pytest
import torch
from safetensors.torch import load_file

from eomt import PMTConfig, PMTForUniversalSegmentation
from eomt.modeling_eomt import load_authors_checkpoint
from tests.models import BACKBONE_OF_KIND, GOLDEN
from tests.parity.test_authors import predictions

KINDS = ("dinov2", "dinov3")


def golden_pmt(kind):
    """The model of a golden checkpoint, its expected numbers, and the normalized pixels."""
    sizes = {"image_size": 96, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2}
    config = PMTConfig.for_backbone(BACKBONE_OF_KIND[kind], **sizes, num_blocks=3, num_queries=9, num_labels=7)
    model = load_authors_checkpoint(GOLDEN / f"pmt_{kind}.checkpoint.safetensors", config)
    io = load_file(GOLDEN / f"pmt_{kind}.io.safetensors")
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    return model, io, (io["pixels_01"] - mean) / std


def assert_near(ours, theirs):
    """Within 1e-5, or a millionth of the largest value if that is more: logits here exceed 10."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=max(1e-5, 1e-6 * float(theirs.abs().max())))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_logits_equal_the_authors(kind):
    model, io, pixels = golden_pmt(kind)
    model.set_attn_mask_probs([1, 1, 1])
    masked = predictions(model(pixels))
    assert len(masked) == 4
    for index, prediction in enumerate(masked):
        assert_near(prediction["masks_queries_logits"], io[f"masked.{index}.mask"])
        assert_near(prediction["class_queries_logits"], io[f"masked.{index}.class"])
    model.set_attn_mask_probs([0, 0, 0])
    (plain,) = predictions(model(pixels))
    assert_near(plain["masks_queries_logits"], io["plain.mask"])
    assert_near(plain["class_queries_logits"], io["plain.class"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_pass_equals_the_authors(kind):
    model, io, pixels = golden_pmt(kind)
    model.set_attn_mask_probs([0, 0, 0])
    model.train()
    out = model(pixels)
    assert_near(out.masks_queries_logits, io["train.mask"])
    assert_near(out.class_queries_logits, io["train.class"])
    (out.masks_queries_logits.square().mean() + out.class_queries_logits.square().mean()).backward()
    assert_near(model.query.weight.grad, io["train.grad.q"])
    assert_near(model.laterals[0].projection.fc1.weight.grad, io["train.grad.lateral0"])
    for level, lateral in enumerate(model.laterals):
        assert_near(lateral.norm.running_mean, io[f"train.running_mean.{level}"])
        assert_near(lateral.norm.running_var, io[f"train.running_var.{level}"])


@pytest.mark.parametrize(("size", "millions"), [("small", 7.7), ("base", 30.4), ("large", 53.9)])
def test_trained_parameters_are_the_papers(size, millions):
    config = PMTConfig.for_backbone(f"vit_{size}_patch16_dinov3", num_labels=133)
    with torch.device("meta"):
        model = PMTForUniversalSegmentation(config)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert round(trained / 1e6, 1) == millions
