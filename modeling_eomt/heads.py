"""The mask module: from queries and patches to classes and masks (paper, Section 3.1).

B images · Q queries · C labels · D width · n targets of an image · M matched pairs of the batch · R points
h, w patches down, across · H, W mask logits down, across (4 h, 4 w for patch size 16)
"""

from collections import OrderedDict
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers.activations import ACT2FN

from ..configuration import EoMTConfig
from .recompute import recomputed
from .resample import sample_features, sample_logits

Matches = list[tuple[Tensor, Tensor]]
"""For each image, indices of the matched queries and of their targets, (min(Q, n),) each."""


@dataclass
class MaskPrediction:
    """One prediction: class logits, and mask logits or their two factors, mask embeddings and mask features.

    Sampling is linear, so mask logits at a few points are the product of mask embeddings and sampled features.
    Attention masks, matching costs and losses never need the full logits of all queries.
    """

    class_logits: Tensor  # [B, Q, C + 1], the last is "no object"
    mask_embeddings: Tensor | None = None  # [B, Q, D]
    mask_features: Tensor | None = None  # [B, H, W, D]
    mask_logits: Tensor | None = None  # [B, Q, H, W], as given, or from the first call of `logits`

    def logits(self) -> dict[str, Tensor]:
        """The model's output: masks_queries_logits (B, Q, H, W) and class_queries_logits (B, Q, C + 1)."""
        if self.mask_logits is None:
            mask_logits = self.mask_embeddings @ self.mask_features.flatten(1, 2).transpose(1, 2)  # [B, Q, H·W]
            self.mask_logits = mask_logits.unflatten(-1, self.mask_features.shape[1:3])
        return {"masks_queries_logits": self.mask_logits, "class_queries_logits": self.class_logits}

    def logits_on(self, grid: tuple[int, int]) -> Tensor:
        """Mask logits of every query, resampled to a grid: (B, Q, h, w)."""
        if self.mask_logits is not None:
            return F.interpolate(self.mask_logits, size=grid, mode="bilinear", align_corners=False)
        features = self.mask_features.permute(0, 3, 1, 2)
        features = F.interpolate(features, size=grid, mode="bilinear", align_corners=False)  # [B, D, h, w]
        return (self.mask_embeddings @ features.flatten(2)).unflatten(-1, grid)

    def logits_at(self, points: Tensor) -> Tensor:
        """Mask logits of every query at the points (B, R, 2) of its image: (B, Q, R) fp32."""
        if self.mask_embeddings is None:
            return sample_logits(self.mask_logits, points)
        features = sample_features(self.mask_features, points)  # [B, R, D]
        return (self.mask_embeddings.to(features.dtype) @ features.transpose(1, 2)).float()

    def matched_mask_logits(self, matches: Matches) -> Tensor:
        """Mask logits of the matched queries of all images, (M, H, W)."""
        matched = [queries for queries, _ in matches]
        if self.mask_embeddings is None:
            return torch.cat([logits[queries] for logits, queries in zip(self.mask_logits, matched)])
        embeddings = [embeddings[queries] for embeddings, queries in zip(self.mask_embeddings, matched)]
        embeddings = pad_sequence(embeddings, batch_first=True)  # [B, max m, D]
        logits = self.mask_features.flatten(1, 2) @ embeddings.transpose(1, 2)  # [B, H·W, max m]
        logits = [padded[: len(queries)] for padded, queries in zip(logits.transpose(1, 2), matched)]
        return torch.cat(logits).unflatten(-1, self.mask_features.shape[1:3])


class Queries(nn.Embedding):
    """Batch size → the learned queries (B, Q, D). A module, so that offloading hooks run before `forward`."""

    def forward(self, batch: int) -> Tensor:
        return self.weight.expand(batch, -1, -1)


class UpConvolution(nn.ConvTranspose2d):
    """2×2 transposed convolution of stride 2, channels last: (B, h, w, D) → (B, 2h, 2w, D).

    The 2×2 outputs of different inputs do not overlap, so it is one matrix product and a reshape.
    """

    def __init__(self, width: int):
        super().__init__(width, width, kernel_size=2, stride=2)

    def forward(self, features: Tensor) -> Tensor:
        width = self.out_channels
        weight = self.weight.permute(2, 3, 1, 0).reshape(4 * width, -1)  # [2·2·D, D]
        upscaled = F.linear(features, weight, self.bias.repeat(4)).unflatten(-1, (2, 2, width))
        return upscaled.transpose(2, 3).flatten(1, 2).flatten(2, 3)


class ScaleLayer(nn.Module):
    """Transposed convolution ×2, GELU, depthwise 3×3 convolution, norm: (B, h, w, D) → (B, 2h, 2w, D).

    Channels are last throughout. Parameters have the hub's names and shapes.
    """

    def __init__(self, config: EoMTConfig):
        super().__init__()
        width = config.hidden_size
        self.conv1 = UpConvolution(width)
        self.activation = ACT2FN[config.hidden_act]
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, padding=1, groups=width, bias=False)
        self.layernorm2d = nn.LayerNorm(width, eps=1e-6)

    def forward(self, features: Tensor) -> Tensor:
        upscaled = self.conv1(features)
        return recomputed(self._refine, upscaled, modules=[self.activation, self.conv2, self.layernorm2d])

    def _refine(self, upscaled: Tensor) -> Tensor:
        """GELU, depthwise convolution and norm: (B, 2h, 2w, D) → (B, 2h, 2w, D)."""
        upscaled = self.activation(upscaled).permute(0, 3, 1, 2)
        return self.layernorm2d(self.conv2(upscaled).permute(0, 2, 3, 1))


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
