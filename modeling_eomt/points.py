"""Bilinear sampling of masks at points, as `grid_sample` does it (align_corners False, zeros outside).

n masks · R points · H, W pixels
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def sample_logits(logits: Tensor, points: Tensor) -> Tensor:
    """Logits (n, H, W) at points (n, R, 2) or (1, R, 2) in [0, 1], x before y → (n, R) fp32, differentiable."""
    logits = logits.float()
    if points.shape[0] == 1:  # the same points for all: masks are the channels of one image
        return F.grid_sample(logits[None], 2 * points[:, None] - 1, align_corners=False)[0, :, 0]
    return F.grid_sample(logits[:, None], 2 * points[:, None] - 1, align_corners=False)[:, 0, 0]


def sample_masks(masks: Tensor, points: Tensor) -> Tensor:
    """Target masks (n, H, W) of any type at points (n, R, 2) or (1, R, 2) in [0, 1], x before y → (n, R) fp32.

    Gathers the four neighbours of each point, so bool masks are never cast whole.
    """
    height, width = masks.shape[-2:]
    x, y = points.float().unbind(-1)
    x, y = x * width - 0.5, y * height - 0.5
    left, top = x.floor(), y.floor()
    flat = masks.flatten(1)
    sampled = torch.zeros((masks.shape[0], points.shape[1]), device=masks.device)
    for column, column_weight in ((left, left + 1 - x), (left + 1, x - left)):
        for row, row_weight in ((top, top + 1 - y), (top + 1, y - top)):
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            index = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).long()  # [n or 1, R]
            values = flat[:, index[0]] if index.shape[0] == 1 else flat.gather(1, index)
            sampled += values * (column_weight * row_weight * inside)
    return sampled


@torch.no_grad()
def uncertain_points(logits: Tensor, count: int, oversample_ratio: float, importance_ratio: float) -> Tensor:
    """Mask logits (n, H, W) → (n, count, 2) points in [0, 1]: mostly where the mask is least certain.

    Of count · oversample_ratio random points, the count · importance_ratio with the smallest |logit|; the rest at
    random (PointRend; by default 37632 → 9408 + 3136).
    """
    masks, device = logits.shape[0], logits.device
    candidates = torch.rand(masks, int(count * oversample_ratio), 2, device=device)
    certainty = sample_logits(logits, candidates).abs()  # [n, count · oversample_ratio]
    important = int(importance_ratio * count)
    chosen = certainty.topk(important, dim=1, largest=False, sorted=False).indices
    chosen = candidates.gather(1, chosen[..., None].expand(-1, -1, 2))
    return torch.cat([chosen, torch.rand(masks, count - important, 2, device=device)], dim=1)
