"""The heads equal transformers' Mask2Former for the same feature maps and weights."""

import pytest
import torch
from torch import nn
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig
from transformers.modeling_outputs import BackboneOutput

from eomt.modeling_eomt.ladder.mask2former import Mask2FormerHeads

WIDTH = 24


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    config = Mask2FormerConfig(
        backbone_config=SwinConfig(embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1],
                                   out_features=["stage1", "stage2", "stage3", "stage4"]),
        feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=16, encoder_layers=2,
        decoder_layers=7, num_attention_heads=2, dim_feedforward=16, num_queries=5, num_labels=3,
    )  # fmt: skip
    model = Mask2FormerForUniversalSegmentation(config).eval()
    decoder = type(model.model.pixel_level_module.decoder)(config, feature_channels=[WIDTH] * 4)
    model.model.pixel_level_module.decoder = decoder
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model


def test_predictions_equal_transformers(theirs):
    maps = [torch.randn(2, WIDTH, 64 // stride, 96 // stride) for stride in (4, 8, 16, 32)]

    class Maps(nn.Module):
        def forward(self, pixel_values):
            return BackboneOutput(feature_maps=tuple(maps))

    theirs.model.pixel_level_module.encoder = Maps()
    heads = Mask2FormerHeads(theirs.config, WIDTH, use_pixel_decoder=True, num_levels=3).eval()
    heads.pixel_decoder.load_state_dict(theirs.model.pixel_level_module.decoder.state_dict())
    heads.transformer_module.load_state_dict(theirs.model.transformer_module.state_dict())
    heads.class_predictor.load_state_dict(theirs.class_predictor.state_dict())

    def visible_cells(index, prediction, size):
        prediction.logits()
        return prediction.logits_on(size).flatten(2) > 0

    with torch.no_grad():
        expected = theirs(torch.zeros(2, 3, 64, 96), output_auxiliary_logits=True)
        predictions = [p.logits() for p in heads(maps, lambda index: True, visible_cells)]
    for ours, other in zip(predictions, [*expected.auxiliary_logits, expected], strict=True):
        for name in ("masks_queries_logits", "class_queries_logits"):
            torch.testing.assert_close(ours[name], other[name], rtol=1e-5, atol=1e-5)
