"""Bilinear sampling of masks and features at points, as `grid_sample` does it (align_corners False, zeros outside).

B images · D width · n masks · K samplings · R points each · H, W pixels · points are (x, y) in [0, 1]
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def sample_logits(logits: Tensor, points: Tensor) -> Tensor:
    """Logits (K, channels, H, W), each at its own points (K, R, 2) → (K, channels, R) fp32, differentiable."""
    grid = (2 * points[:, None]).sub_(1)  # [K, 1, R, 2] in [-1, 1]
    return F.grid_sample(logits.float(), grid, align_corners=False)[:, :, 0]


def sample_features(features: Tensor, points: Tensor) -> Tensor:
    """Features (B, H, W, D), each image at its own points (B, R, 2) → (B, R, D), in the features' type."""
    images, height, width = features.shape[:3]
    pixels, weights = _neighbors(points, height, width)  # [B, R, 4]
    pixels = pixels + torch.arange(images, device=pixels.device)[:, None, None] * (height * width)
    weights = weights.to(features.dtype)
    sampled = F.embedding_bag(
        pixels.flatten(0, 1), features.flatten(0, 2), mode="sum", per_sample_weights=weights.flatten(0, 1)
    )
    return sampled.unflatten(0, points.shape[:2])


def sample_masks(masks: Tensor, points: Tensor, rows: Tensor | None = None) -> Tensor:
    """Target masks (n, H, W) of any type at points → fp32; bool masks are never cast whole nor copied.

    With `rows` (K,), mask `rows[k]` at points (K, R, 2) → (K, R). Without, every mask at points (R, 2) → (n, R).
    """
    height, width = masks.shape[-2:]
    sampled = 0
    for pixels, weights in zip(*(x.unbind(-1) for x in _neighbors(points, height, width))):
        if rows is None:
            values = masks.flatten(1)[:, pixels]  # [n, R]
        else:
            values = masks.flatten()[rows[:, None] * (height * width) + pixels]  # [K, R]
        sampled = sampled + values * weights
    return sampled


def _neighbors(points: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Points (…, 2) → the flat indices of the four pixels around them, and their weights, both (…, 4)."""
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


@torch.no_grad()
def uncertain_points(logits: Tensor, count: int, oversample_ratio: float, importance_ratio: float) -> Tensor:
    """Mask logits (K, H, W) → (K, count, 2) points: mostly where the mask is least certain.

    Of count · oversample_ratio random points, the count · importance_ratio with the smallest |logit|; the rest at
    random (PointRend; by default 37632 → 9408 + 3136).
    """
    masks, device = logits.shape[0], logits.device
    candidates = torch.rand(masks, int(count * oversample_ratio), 2, device=device)
    certainty = sample_logits(logits[:, None], candidates)[:, 0].abs()  # [K, count · oversample_ratio]
    important = int(importance_ratio * count)
    chosen = certainty.topk(important, dim=1, largest=False, sorted=False).indices
    chosen = candidates.gather(1, chosen[..., None].expand(-1, -1, 2))
    return torch.cat([chosen, torch.rand(masks, count - important, 2, device=device)], dim=1)
