"""Matching and loss: the authors' numbers, those of transformers' EoMT at the same points, and properties."""

import json

import pytest
import torch
import torch.nn.functional as F
from transformers import EomtConfig
from transformers.models.eomt.modeling_eomt import EomtLoss

from eomt.configuration import EoMTConfig
from eomt.modeling_eomt.heads import MaskPrediction
from eomt.modeling_eomt.loss import Criterion, match
from eomt.modeling_eomt.resample import sample_logits
from tests.models import GOLDEN, targets, tiny_model


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_golden_matching_losses_and_gradient(dtype):
    """64 points, as in the golden run. Masks are constant, but sampling mixes in zeros within half a pixel of the
    border. So mask and dice loss are a little random, with σ = 0.006 and 0.009; the golden run is one draw."""
    golden = json.loads((GOLDEN / "loss.json").read_text())
    height, width = golden["mask_logits_size"]
    config = EoMTConfig(num_labels=golden["num_classes"], train_num_points=64)
    masks = [
        torch.tensor(image["mask_is_one"])[:, None, None].expand(-1, *golden["target_size"]).to(dtype)
        for image in golden["targets"]
    ]
    labels = [torch.tensor(image["labels"]) for image in golden["targets"]]
    mask_logits = torch.tensor(golden["mask_logit_constant"])[..., None, None].expand(-1, -1, height, width)
    class_logits = torch.tensor(golden["class_logits"], requires_grad=True)
    torch.manual_seed(0)
    (matches,) = match([MaskPrediction(class_logits, mask_logits=mask_logits)], masks, labels, config)
    assert [[queries.tolist(), found.tolist()] for queries, found in matches] == golden["matching"]
    draws = [Criterion(config)(mask_logits, class_logits, masks, labels) for _ in range(30)]
    losses = draws[0]
    for name, expected in golden["losses"].items():
        mean = torch.stack([draw[name] for draw in draws]).mean().item()
        tolerance = 1e-5 if name == "loss_cross_entropy" else 0.02
        assert abs(mean - expected) < tolerance, (name, mean, expected)
    (config.class_weight * losses["loss_cross_entropy"]).backward()
    torch.testing.assert_close(class_logits.grad, torch.tensor(golden["grad_class_logits"]), rtol=0, atol=1e-5)


def test_losses_equal_the_built_ins_at_the_same_points():
    torch.manual_seed(0)
    config = EoMTConfig(num_labels=5, train_num_points=512)
    masks, labels = targets((4,), (48, 64))
    mask_logits = F.interpolate(torch.randn(1, 9, 4, 6), (12, 16), mode="bilinear") * 4
    class_logits = torch.randn(1, 9, 6)
    theirs = EomtLoss(EomtConfig(num_labels=5, train_num_points=512), {})
    for seed in range(3):
        torch.manual_seed(seed)
        expected = theirs(mask_logits, class_logits, [masks[0].float()], labels)
        torch.manual_seed(seed)
        losses = Criterion(config)(mask_logits, class_logits, masks, labels)
        for name, value in losses.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_logits_from_sampled_features_are_the_sampled_logits():
    factors = torch.zeros(2, 7, 6), torch.rand(2, 7, 16), torch.randn(2, 24, 32, 16) / 4
    prediction, formed = MaskPrediction(*factors), MaskPrediction(*factors)
    logits = formed.logits()["masks_queries_logits"]
    points = torch.rand(2, 500, 2)
    points[0, :4] = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.5, 0.0]])
    torch.testing.assert_close(prediction.logits_at(points), sample_logits(logits, points), rtol=0, atol=1e-5)
    torch.testing.assert_close(prediction.logits_on((6, 8)), formed.logits_on((6, 8)), rtol=0, atol=1e-5)
    matches = [(torch.tensor([4, 0]), torch.tensor([0, 1])), (torch.tensor([6]), torch.tensor([0]))]
    expected = torch.stack([logits[0, 4], logits[0, 0], logits[1, 6]])
    torch.testing.assert_close(prediction.matched_mask_logits(matches), expected, rtol=0, atol=1e-5)


def test_more_targets_than_queries():
    config = EoMTConfig(num_labels=5, train_num_points=64)
    masks, labels = targets((9,))
    logits, classes = torch.randn(1, 4, 16, 16, requires_grad=True), torch.randn(1, 4, 6)
    (matches,) = match([MaskPrediction(classes, mask_logits=logits)], masks, labels, config)
    assert sorted(matches[0][0].tolist()) == [0, 1, 2, 3]
    losses = Criterion(config)(logits, classes, masks, labels)
    assert all(value.isfinite() for value in losses.values())


@pytest.mark.parametrize("fill", [False, True])
def test_all_zero_and_all_one_masks_are_finite(fill):
    config = EoMTConfig(num_labels=5, train_num_points=64)
    masks, labels = [torch.full((2, 32, 32), fill)], [torch.tensor([0, 1])]
    logits = (torch.randn(1, 5, 8, 8) * 100).requires_grad_()
    losses = Criterion(config)(logits, torch.randn(1, 5, 6), masks, labels)
    sum(losses.values()).backward()
    assert all(value.isfinite() for value in losses.values())
    assert logits.grad.isfinite().all()


def test_a_query_with_nan_is_matched_last():
    config = EoMTConfig(num_labels=5, train_num_points=64)
    masks, labels = targets((2,))
    logits = torch.randn(1, 4, 8, 8)
    logits[0, :2] = float("nan")
    (matches,) = match([MaskPrediction(torch.randn(1, 4, 6), mask_logits=logits)], masks, labels, config)
    assert sorted(matches[0][0].tolist()) == [2, 3]


def test_numpy_labels_give_the_same_loss():
    masks, labels = targets()
    losses = []
    for given in ((masks, labels), ([mask.numpy() for mask in masks], [label.numpy() for label in labels])):
        model = tiny_model()
        torch.manual_seed(0)
        losses.append(model(torch.zeros(2, 3, 64, 64), *given).loss.item())
    assert losses[0] == losses[1]


def test_losses_outside_training_have_the_names_of_their_blocks():
    """With probabilities [0, 1] only block 1 is masked and has a prediction."""
    model, pixels = tiny_model(), torch.randn(2, 3, 64, 64)
    masks, labels = targets()
    model.set_attn_mask_probs([0.0, 1.0])
    found = model(pixels, mask_labels=masks, class_labels=labels).loss_dict
    assert {name for name in found if name[-1].isdigit()} == {"loss_mask_1", "loss_dice_1", "loss_cross_entropy_1"}
    model.set_attn_mask_probs([1.0, 1.0])
    assert len(model(pixels, mask_labels=masks, class_labels=labels).loss_dict) == 9
