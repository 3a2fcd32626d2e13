"""The training loss (paper, Section 3.1; the losses of Mask2Former), in the order in which it is computed.

1. `match` pairs the targets of each image with queries, separately for every prediction. The cost of a pair adds
   binary cross-entropy and dice of the masks at random points and subtracts the probability of the target's class. The
   Hungarian algorithm finds the pairs of minimal total cost.
2. Class loss: cross-entropy of every query. The label of a matched query is the class of its target, the label of the
   others is "no object", with weight `no_object_weight`.
3. Mask losses: binary cross-entropy and dice of the matched queries, mostly at points where the mask is uncertain.
4. Mask losses are divided by the number of masks, the class loss by the summed weights, both averaged over processes.
5. The loss is the weighted sum of the three parts over all predictions: one before each masked block, and the last.

P predictions · B images · Q queries · C labels · n targets of an image · M matched pairs of the batch, the same number
in every prediction · R points, (x, y) in [0, 1] · H, W mask logits down, across
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ..configuration import EoMTConfig
from .heads import MaskPrediction, Matches
from .resample import sample_logits, sample_masks

Targets = tuple[list[Tensor], list[Tensor]]
"""Masks (n, H', W') and labels (n,) of each image."""


class Criterion(nn.Module):
    """Predictions and targets to losses, in fp32 after the logits."""

    def __init__(self, config: EoMTConfig):
        super().__init__()
        self.config = config
        self.register_buffer("empty_weight", self.class_weights())

    def class_weights(self) -> Tensor:
        """Weights of the classes in the cross-entropy (C + 1,), `no_object_weight` for the last."""
        weights = torch.ones(self.config.num_labels + 1, dtype=torch.float32)
        weights[-1] = self.config.no_object_weight
        return weights

    def forward(
        self, masks_queries_logits: Tensor, class_queries_logits: Tensor, mask_labels, class_labels
    ) -> dict[str, Tensor]:
        """Unweighted losses of one prediction, {"loss_mask", "loss_dice", "loss_cross_entropy"}.

        Args:
            masks_queries_logits: (B, Q, H, W).
            class_queries_logits: (B, Q, C + 1).
            mask_labels: list of (n, H', W') bool or float masks, or one (B, n, H', W') tensor.
            class_labels: list of (n,) labels, or one (B, n) tensor.
        """
        prediction = MaskPrediction(class_queries_logits, mask_logits=masks_queries_logits)
        (losses,) = self._unweighted([prediction], mask_labels, class_labels)
        return losses

    def losses(
        self, predictions: list[MaskPrediction], mask_labels, class_labels, blocks: Sequence[int] | None = None
    ) -> dict[str, Tensor]:
        """Weighted losses of every prediction. Their sum is the loss.

        Args:
            blocks: the masked block of each intermediate prediction, by default the first ones. Its losses have the
                suffix "_0", "_1", …; those of the last prediction have none.
        """
        weights = {
            "loss_mask": self.config.mask_weight,
            "loss_dice": self.config.dice_weight,
            "loss_cross_entropy": self.config.class_weight,
        }
        blocks = range(len(predictions) - 1) if blocks is None else blocks
        suffixes = [*(f"_{block}" for block in blocks), ""]
        weighted = {}
        for suffix, losses in zip(suffixes, self._unweighted(predictions, mask_labels, class_labels)):
            for name, value in losses.items():
                weighted[f"{name}{suffix}"] = weights[name] * value
        return weighted

    def _unweighted(self, predictions: list[MaskPrediction], mask_labels, class_labels) -> list[dict[str, Tensor]]:
        class_logits = [prediction.class_logits for prediction in predictions]
        masks, labels = check_targets(mask_labels, class_labels, self.config, class_logits[-1])
        matches = match(predictions, masks, labels, self.config)
        matched_logits = [prediction.matched_mask_logits(pairs) for prediction, pairs in zip(predictions, matches)]
        with torch.autocast(masks[0].device.type, enabled=False):
            logits = torch.stack(class_logits).float()  # [P, B, Q, C + 1]
            classes = self._classes(matches, labels, logits.shape[:3])
            weights = self.empty_weight.to(logits)
            cross_entropy = F.cross_entropy(logits.flatten(0, 2), classes.flatten(), weights, reduction="none")
            cross_entropy = cross_entropy.unflatten(0, classes.shape)  # [P, B, Q]
            mask_logits = torch.stack(matched_logits).float()  # [P, M, H, W]
            mask_loss, dice_loss = self._mask_losses(mask_logits, matches, masks)  # [P], [P]
            num_masks, class_weights = across_ranks(mask_logits.shape[1], weights[classes].sum((1, 2)))
        parts = {
            "loss_mask": mask_loss / num_masks.clamp(min=1),
            "loss_dice": dice_loss / num_masks.clamp(min=1),
            "loss_cross_entropy": cross_entropy.sum((1, 2)) / class_weights,
        }
        return [{name: part[index] for name, part in parts.items()} for index in range(len(predictions))]

    def _classes(self, matches: list[Matches], class_labels: list[Tensor], shape: torch.Size) -> Tensor:
        """Target class of every query, (P, B, Q): "no object" unless matched."""
        classes = torch.full(shape, self.config.num_labels, device=class_labels[0].device)
        for prediction_matches, prediction_classes in zip(matches, classes):
            for image_classes, labels, (queries, targets) in zip(prediction_classes, class_labels, prediction_matches):
                image_classes[queries] = labels[targets]
        return classes

    def _mask_losses(self, logits: Tensor, matches: list[Matches], masks: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Matched logits (P, M, H, W) → binary cross-entropy and dice, (P,) each, summed over the pairs."""
        if not logits.shape[1]:
            nothing = logits.sum((1, 2, 3))  # zeros that keep the graph, so that every rank has every gradient
            return nothing, nothing
        config, shape = self.config, logits.shape[:2]
        logits = logits.flatten(0, 1)  # [P·M, H, W]
        points = uncertain_points(
            logits, config.train_num_points, config.oversample_ratio, config.importance_sample_ratio
        )
        targets = targets_at(points.unflatten(0, shape), matches, masks)  # [P·M, R]
        logits = sample_logits(logits[:, None], points)[:, 0]  # [P·M, R]
        cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)
        inside = logits.sigmoid()
        overlap = (inside * targets).sum(1)
        dice = 1 - (2 * overlap + 1) / (inside.sum(1) + targets.sum(1) + 1)
        return cross_entropy.unflatten(0, shape).sum(1), dice.unflatten(0, shape).sum(1)


def check_targets(mask_labels, class_labels, config: EoMTConfig, class_logits: Tensor) -> Targets:
    """Targets as lists with one tensor per image, on the device of the predictions.

    Raises:
        ValueError: for masks and labels of different numbers, or a label outside the configuration (only labels on the
            CPU are checked).
    """
    masks, labels = ([torch.as_tensor(value) for value in values] for values in (mask_labels, class_labels))
    if not len(masks) == len(labels) == len(class_logits):
        raise ValueError(
            f"{len(masks)} mask_labels and {len(labels)} class_labels for {len(class_logits)} images; give one each"
        )
    for index, (image_masks, classes) in enumerate(zip(masks, labels)):
        if image_masks.ndim != 3 or len(image_masks) != len(classes):
            raise ValueError(
                f"image {index} has mask_labels of shape {tuple(image_masks.shape)} and {len(classes)} class_labels; "
                "masks must be (n, height, width) with n labels"
            )
        if classes.device.type == "cpu" and len(classes):
            low, high = int(classes.min()), int(classes.max())
            if low < 0 or high >= config.num_labels:
                wrong = low if low < 0 else high
                raise ValueError(f"image {index} has label {wrong}, outside the model's 0 to {config.num_labels - 1}")
    masks, labels = ([to_device(value, class_logits.device) for value in values] for values in (masks, labels))
    return masks, [label.long() for label in labels]


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on the device. CUDA queues it, and the host does not wait."""
    return tensor.to(device, non_blocking=device.type == "cuda")


@torch.no_grad()
def match(
    predictions: list[MaskPrediction], mask_labels: list[Tensor], class_labels: list[Tensor], config: EoMTConfig
) -> list[Matches]:
    """The matches of every prediction.

    Each image of each prediction has random points of its own, shared by all of its queries and targets. All costs are
    copied to the host at once.
    """
    device = class_labels[0].device
    points = torch.rand(len(mask_labels), len(predictions), config.train_num_points, 2, device=device)  # [B, P, R, 2]
    targets = [
        sample_masks(masks, image_points.flatten(0, 1)).unflatten(1, image_points.shape[:2])  # [n, P, R]
        for masks, image_points in zip(mask_labels, points)
    ]
    targets = pad_sequence(targets, batch_first=True).permute(2, 0, 3, 1)  # [P, B, R, max n]
    labels = pad_sequence(class_labels, batch_first=True)  # [B, max n]
    costs = []
    with torch.autocast(device.type, enabled=False):
        for index, prediction in enumerate(predictions):
            logits = prediction.logits_at(points[:, index])  # [B, Q, R]
            costs.append(matching_cost(logits, prediction.class_logits, targets[index], labels, config))
    return assign(torch.stack(costs), [len(image_labels) for image_labels in class_labels])


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
    # A query with NaN is matched last; scipy would raise.
    return cost.nan_to_num(nan=1e10, posinf=1e10, neginf=-1e10).clamp(-1e10, 1e10)


def assign(costs: Tensor, counts: list[int]) -> list[Matches]:
    """Costs (P, B, Q, max n) and the number of targets of each image → matches, with one copy to the host and back."""
    pairs = []
    for prediction_costs in costs.cpu().numpy():
        for cost, count in zip(prediction_costs, counts):
            queries, targets = linear_sum_assignment(cost[:, :count])
            pairs.append(torch.from_numpy(np.stack([queries, targets])))  # [2, min(Q, n)]
    sizes = [pair.shape[1] for pair in pairs]
    pairs = to_device(torch.cat(pairs, dim=1), costs.device).split(sizes, dim=1)
    pairs = [(queries, targets) for queries, targets in pairs]
    images = len(counts)
    return [pairs[first : first + images] for first in range(0, len(pairs), images)]


@torch.no_grad()
def uncertain_points(logits: Tensor, count: int, oversample_ratio: float, importance_ratio: float) -> Tensor:
    """Mask logits (K, H, W) → points (K, count, 2), mostly where the mask is least certain (PointRend).

    count · importance_ratio points have the smallest |logit| of count · oversample_ratio random ones; the others are
    random. By default: 9408 of 37632, and 3136 others.
    """
    masks, device = logits.shape[0], logits.device
    candidates = torch.rand(masks, int(count * oversample_ratio), 2, device=device)
    certainty = sample_logits(logits[:, None], candidates)[:, 0].abs()  # [K, count · oversample_ratio]
    important = int(importance_ratio * count)
    chosen = certainty.topk(important, dim=1, largest=False, sorted=False).indices
    chosen = candidates.gather(1, chosen[..., None].expand(-1, -1, 2))
    return torch.cat([chosen, torch.rand(masks, count - important, 2, device=device)], dim=1)


@torch.no_grad()
def targets_at(points: Tensor, matches: list[Matches], mask_labels: list[Tensor]) -> Tensor:
    """Target masks of the pairs at their own points (P, M, R, 2): (P·M, R)."""
    sampled, first = [], 0
    for image, masks in enumerate(mask_labels):
        rows = torch.stack([pairs[image][1] for pairs in matches])  # [P, m], targets of the pairs of this image
        image_points = points[:, first : first + rows.shape[1]]  # [P, m, R, 2]
        sampled.append(sample_masks(masks, image_points.flatten(0, 1), rows.flatten()).unflatten(0, rows.shape))
        first += rows.shape[1]
    return torch.cat(sampled, dim=1).flatten(0, 1)


def across_ranks(num_masks: int, class_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Number of masks, and summed class weights of each prediction (P,), of this rank → their means over the ranks.

    Gradients are averaged over ranks. Division by the means makes N processes equal to one process with the full batch.
    (The authors average only the number of masks. With one process there is no difference.)
    """
    totals = F.pad(class_weights.detach(), (1, 0), value=float(num_masks))
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(totals)
        totals = totals / dist.get_world_size()
    return totals[0], totals[1:]
