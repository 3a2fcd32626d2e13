"""Bilinear sampling of masks at points, as `grid_sample` does it (align_corners False, zeros outside).

n masks · K samplings · R points each · H, W pixels · points are (x, y) in [0, 1]
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def sample_logits(logits: Tensor, points: Tensor) -> Tensor:
    """Logits (K, channels, H, W), each at its own points (K, R, 2) → (K, channels, R) fp32, differentiable."""
    return F.grid_sample(logits.float(), 2 * points[:, None] - 1, align_corners=False)[:, :, 0]


def sample_masks(masks: Tensor, points: Tensor, rows: Tensor | None = None) -> Tensor:
    """Target masks (n, H, W) of any type at points → fp32; bool masks are never cast whole nor copied.

    With `rows` (K,), mask `rows[k]` at points (K, R, 2) → (K, R). Without, every mask at points (R, 2) → (n, R).
    """
    height, width = masks.shape[-2:]
    x, y = points.float().unbind(-1)
    x, y = x * width - 0.5, y * height - 0.5
    left, top = x.floor(), y.floor()
    fraction_x, fraction_y = x - left, y - top
    sampled = 0
    for column, column_weight in ((left, 1 - fraction_x), (left + 1, fraction_x)):
        column_weight = column_weight * ((column >= 0) & (column < width))
        column = column.clamp(0, width - 1)
        for row, row_weight in ((top, 1 - fraction_y), (top + 1, fraction_y)):
            weight = column_weight * row_weight * ((row >= 0) & (row < height))
            pixel = (row.clamp(0, height - 1) * width + column).long()
            if rows is None:
                values = masks.flatten(1)[:, pixel]  # [n, R]
            else:
                values = masks.flatten()[rows[:, None] * (height * width) + pixel]  # [K, R]
            sampled = sampled + values * weight
    return sampled


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
