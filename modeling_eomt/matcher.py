"""Assignment of queries to targets by minimal cost, as in Mask2Former.

P predictions · B images · Q queries · n targets of an image · C labels · R points · H, W mask logits
"""

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..configuration import EoMTConfig
from .points import sample_masks

Matches = list[tuple[Tensor, Tensor]]
"""For each image the matched queries and their targets, both (min(Q, n),)."""


@torch.no_grad()
def match(
    predictions: list, mask_labels: list[Tensor], class_labels: list[Tensor], config: EoMTConfig
) -> list[Matches]:
    """Every prediction → its matches.

    A prediction has `class_logits` (B, Q, C + 1) and `logits_at(points)`: each image's own points (B, R, 2) → mask
    logits of every query there, (B, Q, R) fp32.
    Every prediction and image has its own random points, which all queries and targets of that image share. All costs
    travel to the host in one transfer.
    """
    device = class_labels[0].device
    points = torch.rand(len(mask_labels), len(predictions), config.train_num_points, 2, device=device)  # [B, P, R, 2]
    targets = pad_sequence(
        [
            sample_masks(masks, own.flatten(0, 1)).unflatten(1, own.shape[:2])  # [n, P, R]
            for masks, own in zip(mask_labels, points)
        ],
        batch_first=True,
    ).permute(2, 0, 3, 1)  # [P, B, R, max n]
    labels = pad_sequence(class_labels, batch_first=True)  # [B, max n]
    costs = []
    with torch.autocast(device.type, enabled=False):
        for index, prediction in enumerate(predictions):
            logits = prediction.logits_at(points[:, index])  # [B, Q, R]
            costs.append(matching_cost(logits, prediction.class_logits, targets[index], labels, config))
    return _assign(torch.stack(costs), [len(image_labels) for image_labels in class_labels])


def matching_cost(logits: Tensor, class_logits: Tensor, targets: Tensor, labels: Tensor, config: EoMTConfig) -> Tensor:
    """Mask logits (B, Q, R) and targets (B, R, n) at the points, class logits (B, Q, C + 1), labels (B, n) → (B, Q, n).

    mask_weight · cross-entropy + dice_weight · dice − class_weight · probability of the target's class, in fp32.
    """
    # softplus(−x)·t + softplus(x)·(1 − t) = softplus(x) − x·t
    cross_entropy = (F.softplus(logits).sum(-1, keepdim=True) - logits @ targets) / logits.shape[-1]
    inside = logits.sigmoid()
    area = inside.sum(-1, keepdim=True) + targets.sum(1, keepdim=True)
    dice = 1 - (2 * (inside @ targets) + 1) / (area + 1)
    probabilities = class_logits.float().softmax(-1)
    probability = probabilities.gather(2, labels[:, None].expand(-1, probabilities.shape[1], -1))
    cost = config.mask_weight * cross_entropy + config.dice_weight * dice - config.class_weight * probability
    # A query gone wrong is matched last; scipy would raise.
    return cost.nan_to_num(nan=1e10, posinf=1e10, neginf=-1e10).clamp(-1e10, 1e10)


def _assign(costs: Tensor, counts: list[int]) -> list[Matches]:
    """Costs (P, B, Q, max n) and the number of targets of each image → matches; one transfer there and one back."""
    pairs = []
    for prediction_costs in costs.cpu().numpy():
        for cost, count in zip(prediction_costs, counts):
            queries, targets = linear_sum_assignment(cost[:, :count])
            pairs.append(torch.from_numpy(np.stack([queries, targets])))  # [2, min(Q, n)]
    sizes = [pair.shape[1] for pair in pairs]
    pairs = torch.cat(pairs, dim=1).to(costs.device).split(sizes, dim=1)
    pairs = [(queries, targets) for queries, targets in pairs]
    images = len(counts)
    return [pairs[first : first + images] for first in range(0, len(pairs), images)]
