"""Learned positions and patch kernels at another size (paper, Section 3.1 and Appendix A.1); masks and features at
points, sampled bilinearly as `grid_sample` does it (align_corners False, zeros outside).

B images · N patches · D width · C channels · p patch side in pixels · h, w patches down, across · H, W pixels
n masks · K samplings · R points each, (x, y) in [0, 1]
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def spread_channels(kernel: Tensor, channels: int) -> Tensor:
    """Patch kernels of RGB (D, 3, p, p) → (D, channels, p, p), by timm's rule for input convolutions.

    The three are repeated in turn and scaled by 3 / channels, so that an image of equal channels has the same result.
    For one channel they are summed.
    """
    if kernel.shape[1] == channels or kernel.shape[1] != 3:
        return kernel
    if channels == 1:
        return kernel.sum(1, keepdim=True)
    repeated = kernel.repeat(1, -(-channels // 3), 1, 1)[:, :channels]
    return repeated * (3 / channels)


def resample_positions(positions: Tensor, old: tuple[int, int], new: tuple[int, int], num_prefix: int = 0) -> Tensor:
    """(num_prefix + old N, D) → (num_prefix + new N, D): bicubic, antialiased, in fp32. Prefix rows stay.

    Antialiasing changes values even for a larger grid, so it is part of the definition.
    """
    any_size = isinstance(new[0], torch.SymInt) or isinstance(new[1], torch.SymInt)  # in an exported program
    if not any_size and old == new:
        return positions
    prefix, patches = positions[:num_prefix], positions[num_prefix:]
    grid = patches.float().unflatten(0, old)  # [h, w, D]
    if torch.compiler.is_compiling():  # PyTorch cannot trace its resize for dynamic sizes
        down, across = (_bicubic_matrix(*sides, patches.device) for sides in zip(old, new))
        resized = torch.einsum("yh,xw,hwd->yxd", down, across, grid)
    else:
        grid = grid.permute(2, 0, 1)[None]  # [1, D, h, w]
        resized = F.interpolate(grid, size=new, mode="bicubic", antialias=True, align_corners=False)
        resized = resized[0].permute(1, 2, 0)
    return torch.cat([prefix, resized.flatten(0, 1).to(positions.dtype)])


def _bicubic_matrix(old: int, new: int, device: torch.device) -> Tensor:
    """Antialiased bicubic resize of one axis as a matrix (new, old), equal to `interpolate` (a = −0.5)."""
    ratio = torch.full((), new, dtype=torch.float32, device=device) / old
    centers = (torch.arange(new, dtype=torch.float32, device=device) + 0.5) / ratio
    samples = torch.arange(old, dtype=torch.float32, device=device) + 0.5
    distance = (samples - centers[:, None]).abs() * ratio.clamp(max=1)  # a smaller grid widens the filter
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
    return weights / weights.sum(1, keepdim=True)


def resample_patch_kernel(kernel: Tensor, size: tuple[int, int]) -> Tensor:
    """(D, C, p, p) → (D, C, *size) by FlexiViT's pseudo-inverse resize: ⟨x, w⟩ = ⟨resize(x), resized w⟩.

    With B the matrix of the bicubic antialiased resize of p × p images, the new kernel is pinv(Bᵀ) w.
    """
    old = tuple(kernel.shape[-2:])
    if old == size:
        return kernel
    basis = torch.eye(old[0] * old[1], device=kernel.device).unflatten(1, (1, *old))  # [p·p, 1, p, p]
    resize = F.interpolate(basis, size=size, mode="bicubic", antialias=True, align_corners=False).flatten(1).T
    resized = kernel.float().flatten(2) @ torch.linalg.pinv(resize)  # [D, C, new p·p]
    return resized.unflatten(-1, size).to(kernel.dtype)


def sample_logits(logits: Tensor, points: Tensor) -> Tensor:
    """Logits (K, channels, H, W) at points (K, R, 2) → (K, channels, R) fp32, differentiable."""
    grid = (2 * points[:, None]).sub_(1)  # [K, 1, R, 2] in [-1, 1]
    return F.grid_sample(logits.float(), grid, align_corners=False)[:, :, 0]


def sample_features(features: Tensor, points: Tensor) -> Tensor:
    """Features (B, H, W, D) at points (B, R, 2) of their image → (B, R, D), in the type of the features."""
    images, height, width = features.shape[:3]
    pixels, weights = _neighbors(points, height, width)  # [B, R, 4]
    pixels = pixels + torch.arange(images, device=pixels.device)[:, None, None] * (height * width)
    weights = weights.to(features.dtype)
    sampled = F.embedding_bag(
        pixels.flatten(0, 1), features.flatten(0, 2), mode="sum", per_sample_weights=weights.flatten(0, 1)
    )
    return sampled.unflatten(0, points.shape[:2])


def sample_masks(masks: Tensor, points: Tensor, rows: Tensor | None = None) -> Tensor:
    """Target masks (n, H, W) of any type at points, in fp32, without a copy of the masks.

    Without `rows`, every mask at points (R, 2): (n, R). With `rows` (K,), mask `rows[k]` at points[k] of (K, R, 2):
    (K, R).
    """
    height, width = masks.shape[-2:]
    all_pixels, all_weights = _neighbors(points, height, width)
    sampled = 0
    for pixels, weights in zip(all_pixels.unbind(-1), all_weights.unbind(-1)):
        if rows is None:
            values = masks.flatten(1)[:, pixels]  # [n, R]
        else:
            values = masks.flatten()[rows[:, None] * (height * width) + pixels]  # [K, R]
        sampled = sampled + values * weights
    return sampled


def _neighbors(points: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Points (…, 2) → flat indices of the four surrounding pixels and their weights, both (…, 4)."""
    x, y = points.float().unbind(-1)
    x, y = x * width - 0.5, y * height - 0.5
    left, top = x.floor(), y.floor()
    fraction_x, fraction_y = x - left, y - top
    columns = torch.stack([left, left + 1, left, left + 1], dim=-1)
    rows = torch.stack([top, top, top + 1, top + 1], dim=-1)
    across = torch.stack([1 - fraction_x, fraction_x, 1 - fraction_x, fraction_x], dim=-1)
    down = torch.stack([1 - fraction_y, 1 - fraction_y, fraction_y, fraction_y], dim=-1)
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    pixels = rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)
    return pixels.long(), across * down * inside
