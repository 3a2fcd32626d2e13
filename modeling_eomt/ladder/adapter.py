"""ViT-Adapter (step 0): a convolutional branch beside the ViT that exchanges features with it four times.

B images · P prefix tokens · N patches · M pyramid tokens · D width · H, W pixels
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...configuration.ladder import LadderConfig
from .interaction import Interaction, PyramidShapes
from .spatial_prior import SpatialPrior


class ViTAdapter(nn.Module):
    """Image, tokens and the ViT's blocks in four parts → maps (B, D, H/4, W/4), …, (B, D, H/32, W/32), finest first,
    and the tokens (B, P + N, D) after the last block."""

    def __init__(self, config: LadderConfig):
        super().__init__()
        width, last = config.hidden_size, config.num_interactions - 1
        self.spm = SpatialPrior(config.stem_width, width)
        self.level_embed = nn.Parameter(torch.zeros(3, width))
        self.interactions = nn.ModuleList(
            Interaction(config, num_extra_extractors=2 if index == last else 0)
            for index in range(config.num_interactions)
        )
        self.up = nn.ConvTranspose2d(width, width, kernel_size=2, stride=2)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(4))

    def forward(
        self, pixel_values: Tensor, hidden_states: Tensor, parts: Sequence[Callable[[Tensor], Tensor]]
    ) -> tuple[list[Tensor], Tensor]:
        """`hidden_states` (B, P + N, D) as embedded; `parts`, one an interaction, are the ViT's blocks on tokens.

        The feature map of a scale is the pyramid's plus the patch tokens after that scale's part, resized.
        """
        shapes = PyramidShapes((pixel_values.shape[-2] // 16, pixel_values.shape[-1] // 16))
        finest, *maps = self.spm(pixel_values)
        pyramid = torch.cat(
            [level.flatten(2).transpose(1, 2) + embed for level, embed in zip(maps, self.level_embed)], dim=1
        )
        stages = []
        for interaction, blocks in zip(self.interactions, parts, strict=True):
            hidden_states, pyramid = interaction(hidden_states, pyramid, blocks, shapes)
            _, patches = shapes.split_prefix(hidden_states)
            stages.append(patches.transpose(1, 2).unflatten(2, shapes.patches))  # [B, D, h, w]

        levels = pyramid.split(shapes.lengths, dim=1)
        c2, c3, c4 = (level.transpose(1, 2).unflatten(2, shape) for level, shape in zip(levels, shapes.pyramid))
        c1 = self.up(c2) + finest
        scales = [(c1, 4), (c2, 2), (c3, 1), (c4, 0.5)]
        maps = [norm(level + _resize(stage, scale)) for norm, (level, scale), stage in zip(self.norms, scales, stages)]
        return maps, hidden_states


def _resize(feature_map: Tensor, scale: float) -> Tensor:
    if scale == 1:
        return feature_map
    return F.interpolate(feature_map, scale_factor=scale, mode="bilinear", align_corners=False)
