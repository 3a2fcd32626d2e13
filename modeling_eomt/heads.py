"""The mask module: queries and patches → classes and masks (paper, Section 3.1).

B images · Q queries · C labels · D width
h, w patches down, across · H, W mask logits down, across (4 h, 4 w for patch size 16)
"""

from collections import OrderedDict
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN

from ..configuration import EoMTConfig
from .matcher import Matches


@dataclass
class MaskPrediction:
    """One prediction and its factors: mask logits are mask embeddings · mask features."""

    class_logits: Tensor  # [B, Q, C + 1], the last is "no object"
    mask_embeddings: Tensor  # [B, Q, D]
    mask_features: Tensor  # [B, H, W, D]
    mask_logits: Tensor = field(init=False)  # [B, Q, H, W]

    def __post_init__(self):
        logits = self.mask_embeddings @ self.mask_features.flatten(1, 2).transpose(1, 2)  # [B, Q, H·W]
        self.mask_logits = logits.unflatten(-1, self.mask_features.shape[1:3])

    def matched_mask_logits(self, matches: Matches) -> Tensor:
        """Mask logits of the matched queries of all images, (M, H, W); so only those cost a backward pass."""
        logits = [
            F.linear(embeddings[queries], features.flatten(0, 1)).unflatten(-1, features.shape[:2])
            for embeddings, features, (queries, _) in zip(self.mask_embeddings, self.mask_features, matches)
        ]
        return torch.cat(logits)


class ScaleLayer(nn.Module):
    """Transposed convolution ×2, GELU, depthwise 3×3 convolution, norm: (B, h, w, D) → (B, 2h, 2w, D).

    Channels last throughout. A 2×2 transposed convolution of stride 2 touches every output pixel once, so it is one
    matrix product and a reshape. The modules hold the parameters under the hub's names and shapes.
    """

    def __init__(self, config: EoMTConfig):
        super().__init__()
        width = config.hidden_size
        self.conv1 = nn.ConvTranspose2d(width, width, kernel_size=2, stride=2)
        self.activation = ACT2FN[config.hidden_act]
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, padding=1, groups=width, bias=False)
        self.layernorm2d = nn.LayerNorm(width, eps=1e-6)

    def forward(self, features: Tensor) -> Tensor:
        width = features.shape[-1]
        weight = self.conv1.weight.permute(2, 3, 1, 0).reshape(4 * width, width)  # [2·2·D, D]
        upscaled = F.linear(features, weight, self.conv1.bias.repeat(4)).unflatten(-1, (2, 2, width))
        upscaled = self.activation(upscaled).transpose(2, 3).flatten(1, 2).flatten(2, 3)  # [B, 2h, 2w, D]
        return self.layernorm2d(self.conv2(upscaled.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class Upscaler(nn.Module):
    """Patch tokens to mask features: (B, h, w, D) → (B, H, W, D)."""

    def __init__(self, config: EoMTConfig):
        super().__init__()
        self.block = nn.ModuleList(ScaleLayer(config) for _ in range(config.num_upscale_blocks))

    def forward(self, features: Tensor) -> Tensor:
        for layer in self.block:
            features = layer(features)
        return features


def mask_head(config: EoMTConfig) -> nn.Sequential:
    """Query tokens to mask embeddings, three layers: (B, Q, D) → (B, Q, D)."""
    width = config.hidden_size
    layers = [
        ("fc1", nn.Linear(width, width)),
        ("activation1", ACT2FN[config.hidden_act]),
        ("fc2", nn.Linear(width, width)),
        ("activation2", ACT2FN[config.hidden_act]),
        ("fc3", nn.Linear(width, width)),
    ]
    return nn.Sequential(OrderedDict(layers))
