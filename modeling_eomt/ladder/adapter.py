"""ViT-Adapter (step 0): a convolutional branch beside the ViT that exchanges features with it four times.

    SpatialPrior   image → pyramid: features of strides 4, 8, 16 and 32
    Interaction    pyramid → patch tokens (Injector), a quarter of the ViT's blocks, patch tokens → pyramid (Extractor);
                   both by deformable attention
    ViTAdapter     the prior and four interactions

B images · P prefix tokens · N patches · M pyramid tokens (strides 8, 16, 32; 21/4 · N) · D width · H, W pixels
A heads · L levels · K points
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.mask2former.modeling_mask2former import multi_scale_deformable_attention

from ...configuration.ladder import LadderConfig

NORM_EPS = 1e-6


class ViTAdapter(nn.Module):
    """Image, tokens and the ViT's blocks → feature maps of strides 4, 8, 16 and 32, and the tokens after the blocks."""

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
        """Maps (B, D, H/4, W/4), …, (B, D, H/32, W/32), and the tokens (B, P + N, D) after the blocks.

        A map is the pyramid's, plus the patch tokens after one part of the blocks, resized.

        Args:
            pixel_values: (B, 3, H, W).
            hidden_states: embedded tokens (B, P + N, D).
            parts: the ViT's blocks in one part per interaction, as functions of the tokens.
        """
        shapes = PyramidShapes((pixel_values.shape[-2] // 16, pixel_values.shape[-1] // 16))
        finest, *coarser = self.spm(pixel_values)
        levels = [level.flatten(2).transpose(1, 2) + embed for level, embed in zip(coarser, self.level_embed)]
        pyramid = torch.cat(levels, dim=1)  # [B, M, D]
        stages = []
        for interaction, blocks in zip(self.interactions, parts, strict=True):
            hidden_states, pyramid = interaction(hidden_states, pyramid, blocks, shapes)
            _, patches = shapes.split_prefix(hidden_states)
            stages.append(patches.transpose(1, 2).unflatten(2, shapes.patches))  # [B, D, h, w]

        levels = pyramid.split(shapes.lengths, dim=1)
        c2, c3, c4 = (level.transpose(1, 2).unflatten(2, shape) for level, shape in zip(levels, shapes.pyramid))
        c1 = self.up(c2) + finest
        maps = []
        for level, scale, stage, norm in zip((c1, c2, c3, c4), (4, 2, 1, 0.5), stages, self.norms):
            maps.append(norm(level + _resize(stage, scale)))
        return maps, hidden_states


def _resize(feature_map: Tensor, scale: float) -> Tensor:
    if scale == 1:
        return feature_map
    return F.interpolate(feature_map, scale_factor=scale, mode="bilinear", align_corners=False)


class SpatialPrior(nn.Module):
    """(B, 3, H, W) → maps (B, D, H/4, W/4), (B, D, H/8, W/8), (B, D, H/16, W/16), (B, D, H/32, W/32)."""

    def __init__(self, stem_width: int, width: int):
        super().__init__()
        self.stem = nn.Sequential(
            *_convolution(3, stem_width, stride=2),
            *_convolution(stem_width, stem_width, stride=1),
            *_convolution(stem_width, stem_width, stride=1),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        self.conv2 = nn.Sequential(*_convolution(stem_width, 2 * stem_width, stride=2))
        self.conv3 = nn.Sequential(*_convolution(2 * stem_width, 4 * stem_width, stride=2))
        self.conv4 = nn.Sequential(*_convolution(4 * stem_width, 4 * stem_width, stride=2))
        self.fc1 = nn.Conv2d(stem_width, width, kernel_size=1)
        self.fc2 = nn.Conv2d(2 * stem_width, width, kernel_size=1)
        self.fc3 = nn.Conv2d(4 * stem_width, width, kernel_size=1)
        self.fc4 = nn.Conv2d(4 * stem_width, width, kernel_size=1)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        c1 = self.stem(pixel_values)
        c2 = self.conv2(c1)
        c3 = self.conv3(c2)
        c4 = self.conv4(c3)
        return self.fc1(c1), self.fc2(c2), self.fc3(c3), self.fc4(c4)


def _convolution(width_in: int, width_out: int, stride: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    convolution = nn.Conv2d(width_in, width_out, kernel_size=3, stride=stride, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(width_out), nn.ReLU()


@dataclass(frozen=True)
class PyramidShapes:
    """Sizes (down, across) of the patch grid and of the pyramid's maps of strides 8, 16 and 32."""

    patches: tuple[int, int]

    @property
    def pyramid(self) -> list[tuple[int, int]]:
        height, width = self.patches
        return [(2 * height, 2 * width), (height, width), (height // 2, width // 2)]

    @property
    def lengths(self) -> list[int]:
        return [height * width for height, width in self.pyramid]

    def split_prefix(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, P + N, D) → (B, P, D), (B, N, D)."""
        num_patches = self.patches[0] * self.patches[1]
        num_prefix = hidden_states.shape[1] - num_patches
        return hidden_states.split([num_prefix, num_patches], dim=1)


def centers(shapes: list[tuple[int, int]], like: Tensor) -> Tensor:
    """Centers (x, y) in [0, 1] of the cells of maps of these sizes: reference points (1, cells, 1, 2)."""
    points = []
    for height, width in shapes:
        y = (torch.arange(height, device=like.device, dtype=torch.float32) + 0.5) / height
        x = (torch.arange(width, device=like.device, dtype=torch.float32) + 0.5) / width
        grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
        points.append(torch.stack([grid_x, grid_y], dim=-1).flatten(0, 1))
    return torch.cat(points)[None, :, None].to(like.dtype)


class DeformableAttention(nn.Module):
    """Each query reads a few learned points of each level: (B, queries, D), features (B, cells, D) → (B, queries, D).

    transformers' module lacks the narrower values of ViT-Adapter (`deform_ratio`), so only its kernel is used.
    """

    def __init__(self, config: LadderConfig, num_levels: int):
        super().__init__()
        self.num_heads, self.num_levels = config.num_attention_heads, num_levels
        self.num_points = config.deform_num_points
        width, value_width = config.hidden_size, int(config.hidden_size * config.deform_ratio)
        count = self.num_heads * num_levels * self.num_points  # points that a query reads
        self.sampling_offsets = nn.Linear(width, 2 * count)
        self.attention_weights = nn.Linear(width, count)
        self.value_proj = nn.Linear(width, value_width)
        self.output_proj = nn.Linear(value_width, width)

    def forward(self, queries: Tensor, features: Tensor, shapes: list[tuple[int, int]], reference: Tensor) -> Tensor:
        """`shapes`: sizes of the features' levels. `reference`: positions of the queries, (1, queries, 1, 2)."""
        values = self.value_proj(features).unflatten(-1, (self.num_heads, -1))  # [B, cells, A, E]
        points = (self.num_heads, self.num_levels, self.num_points)
        offsets = self.sampling_offsets(queries).unflatten(-1, (*points, 2))  # [B, queries, A, L, K, 2]
        sides = torch.tensor([[width, height] for height, width in shapes])  # [L, 2]
        sides = sides.to(queries.device, non_blocking=queries.is_cuda)
        locations = reference[:, :, None, :, None, :] + offsets / sides[:, None, :].to(offsets.dtype)
        weights = self.attention_weights(queries).unflatten(-1, (self.num_heads, -1)).softmax(-1)
        weights = weights.unflatten(-1, points[1:])  # [B, queries, A, L, K]
        return self.output_proj(multi_scale_deformable_attention(values, shapes, locations, weights))


class Injector(nn.Module):
    """Pyramid to patch tokens: (B, N, D), (B, M, D) → (B, N, D). The gain starts at 0 and the ViT unchanged."""

    def __init__(self, config: LadderConfig):
        super().__init__()
        width = config.hidden_size
        self.query_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.feat_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = DeformableAttention(config, num_levels=3)
        self.gamma = nn.Parameter(torch.zeros(width))

    def forward(self, patches: Tensor, pyramid: Tensor, shapes: PyramidShapes) -> Tensor:
        reference = centers([shapes.patches], patches)
        injected = self.attn(self.query_norm(patches), self.feat_norm(pyramid), shapes.pyramid, reference)
        return patches + self.gamma * injected


class Extractor(nn.Module):
    """Patch tokens to pyramid: (B, M, D), (B, N, D) → (B, M, D)."""

    def __init__(self, config: LadderConfig):
        super().__init__()
        width = config.hidden_size
        self.query_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.feat_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = DeformableAttention(config, num_levels=1)
        self.ffn = ConvolutionalFeedForward(width, int(width * config.conv_ffn_ratio))
        self.ffn_norm = nn.LayerNorm(width, eps=NORM_EPS)

    def forward(self, pyramid: Tensor, patches: Tensor, shapes: PyramidShapes) -> Tensor:
        reference = centers(shapes.pyramid, pyramid)
        extracted = self.attn(self.query_norm(pyramid), self.feat_norm(patches), [shapes.patches], reference)
        pyramid = pyramid + extracted
        return pyramid + self.ffn(self.ffn_norm(pyramid), shapes)


class ConvolutionalFeedForward(nn.Module):
    """Linear, one depthwise 3×3 convolution shared by the three scales, GELU, linear: (B, M, D) → (B, M, D)."""

    def __init__(self, width: int, hidden_width: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden_width)
        self.dwconv = nn.Conv2d(hidden_width, hidden_width, kernel_size=3, padding=1, groups=hidden_width)
        self.fc2 = nn.Linear(hidden_width, width)

    def forward(self, pyramid: Tensor, shapes: PyramidShapes) -> Tensor:
        levels = self.fc1(pyramid).split(shapes.lengths, dim=1)
        convolved = []
        for level, shape in zip(levels, shapes.pyramid):
            feature_map = level.transpose(1, 2).unflatten(2, shape)
            convolved.append(self.dwconv(feature_map).flatten(2).transpose(1, 2))
        return self.fc2(F.gelu(torch.cat(convolved, dim=1)))


class Interaction(nn.Module):
    """Injector, a part of the ViT's blocks, extractors: tokens (B, P + N, D) and pyramid (B, M, D) → the same two.

    The prefix tokens pass through the blocks only.
    """

    def __init__(self, config: LadderConfig, num_extra_extractors: int = 0):
        super().__init__()
        self.injector = Injector(config)
        self.extractor = Extractor(config)
        self.extra_extractors = nn.ModuleList(Extractor(config) for _ in range(num_extra_extractors))

    def forward(
        self, hidden_states: Tensor, pyramid: Tensor, blocks: Callable[[Tensor], Tensor], shapes: PyramidShapes
    ) -> tuple[Tensor, Tensor]:
        prefix, patches = shapes.split_prefix(hidden_states)
        patches = self.injector(patches, pyramid, shapes)
        hidden_states = blocks(torch.cat([prefix, patches], dim=1))
        _, patches = shapes.split_prefix(hidden_states)
        for extractor in (self.extractor, *self.extra_extractors):
            pyramid = extractor(pyramid, patches, shapes)
        return hidden_states, pyramid
