"""Assignment of queries to targets by minimal cost, as in Mask2Former.

B images · Q queries · n targets of an image · C labels · R points
"""

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..configuration import EoMTConfig
from .points import sample_logits, sample_masks

Matches = list[tuple[Tensor, Tensor]]
"""For each image the matched queries and their targets, both (min(Q, n),) on the host."""


@torch.no_grad()
def matching_cost(
    mask_logits: Tensor, class_logits: Tensor, masks: Tensor, labels: Tensor, config: EoMTConfig
) -> Tensor:
    """One image's (Q, H, W) logits, (Q, C + 1) logits, (n, H', W') masks, (n,) labels → (Q, n) cost, fp32.

    5 · cross-entropy + 5 · dice over R shared random points, − 2 · probability of the target's class.
    """
    points = torch.rand(1, config.train_num_points, 2, device=mask_logits.device)
    with torch.autocast(mask_logits.device.type, enabled=False):
        logits = sample_logits(mask_logits, points)  # [Q, R]
        targets = sample_masks(masks, points).T  # [R, n]
        # softplus(−x)·t + softplus(x)·(1 − t) = softplus(x) − x·t
        cross_entropy = (F.softplus(logits).sum(1, keepdim=True) - logits @ targets) / logits.shape[1]
        inside = logits.sigmoid()
        overlap = inside @ targets
        dice = 1 - (2 * overlap + 1) / (inside.sum(1, keepdim=True) + targets.sum(0) + 1)
        probability = class_logits.float().softmax(-1)[:, labels]  # [Q, n]
        cost = config.mask_weight * cross_entropy + config.dice_weight * dice - config.class_weight * probability
    # A query gone wrong is matched last; scipy would raise.
    return cost.nan_to_num(nan=1e10, posinf=1e10, neginf=-1e10).clamp(-1e10, 1e10)


def assign(costs: list[list[Tensor]]) -> list[Matches]:
    """costs[prediction][image] (Q, n) → matches[prediction][image], after one transfer to the host for all of them."""
    flat = [cost for of_prediction in costs for cost in of_prediction]
    on_host = torch.cat([cost.flatten() for cost in flat]).cpu() if flat else torch.empty(0)
    pieces = on_host.split([cost.numel() for cost in flat])
    pairs = [linear_sum_assignment(piece.view(cost.shape).numpy()) for piece, cost in zip(pieces, flat)]
    matches = iter([(torch.from_numpy(queries), torch.from_numpy(targets)) for queries, targets in pairs])
    return [[next(matches) for _ in of_prediction] for of_prediction in costs]
