"""Rotary position embeddings of DINOv3 and EVA-02, as tables over the token sequence.

B images · A heads · T tokens = prefix (queries, class token, registers) + N patches · E head width
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..configuration import EoMTConfig


@dataclass
class RotaryTable:
    """Cosines and sines (T, E). Prefix rows hold 1 and 0, which leave prefix tokens as they are.

    `angles`: (N, E) of the patches, in fp32. For merged tokens (token_merging.py) every image has rows of its own:
    (B, 1, T, E) and (B, N, E).
    """

    cos: Tensor
    sin: Tensor
    interleaved: bool
    angles: Tensor

    @classmethod
    def from_angles(cls, angles: Tensor, dtype: torch.dtype, interleaved: bool) -> "RotaryTable":
        """Angles (N, E) or (B, N, E) → the table without prefix rows."""
        rows = angles if angles.ndim == 2 else angles[:, None]
        return cls(rows.cos().to(dtype), rows.sin().to(dtype), interleaved, angles)

    def with_prefix(self, count: int) -> "RotaryTable":
        """The table with rows for `count` tokens in front, which are not rotated."""
        shape = (*self.cos.shape[:-2], count, self.cos.shape[-1])
        cos = torch.cat([self.cos.new_ones(shape), self.cos], dim=-2)
        sin = torch.cat([self.sin.new_zeros(shape), self.sin], dim=-2)
        return RotaryTable(cos, sin, self.interleaved, self.angles)

    def to(self, device: torch.device, **kwargs) -> "RotaryTable":
        """A copy on another device. accelerate's hooks call this for a module's inputs."""
        tensors = (self.cos.to(device, **kwargs), self.sin.to(device, **kwargs))
        return RotaryTable(*tensors, self.interleaved, self.angles.to(device, **kwargs))

    def rotate(self, x: Tensor) -> Tensor:
        """Rotate patches of queries or keys (B, A, T, E) by their positions."""
        if self.interleaved:
            turned = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
        else:
            first, second = x.chunk(2, dim=-1)
            turned = torch.cat([-second, first], dim=-1)
        return x * self.cos + turned * self.sin


def rotary_table(
    config: EoMTConfig, grid: tuple[int, int], device: torch.device, dtype: torch.dtype, training: bool
) -> RotaryTable | None:
    """Patch grid (down, across) → the table for prefix and patches, or None for a family without rotary positions."""
    if config.layout.rope is None:
        return None
    head_width = config.hidden_size // config.num_attention_heads
    if config.layout.rope == "dinov3":
        angles = _dinov3_angles(config, grid, head_width, device, training)
    else:
        angles = _eva02_angles(config, grid, head_width, device)
    return RotaryTable.from_angles(angles, dtype, config.layout.rope == "eva02").with_prefix(config.num_prefix_tokens)


def _dinov3_angles(config, grid: tuple[int, int], head_width: int, device, training: bool) -> Tensor:
    """Angles (N, E): patch centers in [−1, 1] × 2π × θ^(−4j/E), for y and x, all twice."""
    axes = [(torch.arange(side, dtype=torch.float32, device=device) + 0.5) / side * 2 - 1 for side in grid]
    centers = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 1)  # [N, 2]
    if training:
        centers = _augment(centers, config)
    exponents = torch.arange(0, 1, 4 / head_width, dtype=torch.float32, device=device)
    frequencies = 1 / config.rope_parameters["rope_theta"] ** exponents  # [E/4]
    angles = 2 * math.pi * centers[:, :, None] * frequencies  # [N, 2, E/4]
    return angles.flatten(1).tile(2)  # [N, E]


def _augment(centers: Tensor, config) -> Tensor:
    """DINOv3's augmentation of patch coordinates (N, 2) in training: one shift, jitter and rescaling per batch."""

    def uniform(count: int, bound: float) -> Tensor:
        return torch.empty(1, count, device=centers.device).uniform_(-bound, bound)

    if config.pos_embed_shift is not None:
        centers = centers + uniform(2, config.pos_embed_shift)
    if config.pos_embed_jitter is not None:
        centers = centers * uniform(2, math.log(config.pos_embed_jitter)).exp()
    if config.pos_embed_rescale is not None:
        centers = centers * uniform(1, math.log(config.pos_embed_rescale)).exp()
    return centers


def _eva02_angles(config, grid: tuple[int, int], head_width: int, device) -> Tensor:
    """Angles (N, E): patch indices, scaled to the pre-training grid, × θ^(−4k/E), for y and x, each channel twice."""
    axes = [torch.arange(side, dtype=torch.float32, device=device) / side * config.rope_reference_grid for side in grid]
    indices = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 1)  # [N, 2]
    exponents = torch.arange(head_width // 4, dtype=torch.float32, device=device) / (head_width // 4)
    angles = indices[:, :, None] * config.rope_theta**-exponents  # [N, 2, E/4]
    return angles.flatten(1).repeat_interleave(2, dim=-1)  # [N, E]
