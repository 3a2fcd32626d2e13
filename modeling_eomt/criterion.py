"""The training loss: matched masks and classes, for every prediction (paper, Section 3.1; Mask2Former's losses).

B images · Q queries · C labels · M matched pairs of the batch · R points · H, W mask logits
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ..configuration import EoMTConfig
from .matcher import Matches, assign, matching_cost
from .points import sample_logits, sample_masks, uncertain_points


class Criterion(nn.Module):
    """Predictions and targets → {"loss_mask", "loss_dice", "loss_cross_entropy"}, unweighted."""

    def __init__(self, config: EoMTConfig):
        super().__init__()
        self.config = config
        self.register_buffer("empty_weight", torch.ones(config.num_labels + 1))
        self.empty_weight[-1] = config.no_object_weight

    def forward(
        self, masks_queries_logits: Tensor, class_queries_logits: Tensor, mask_labels, class_labels
    ) -> dict[str, Tensor]:
        """Losses of one prediction.

        Args:
            masks_queries_logits: (B, Q, H, W).
            class_queries_logits: (B, Q, C + 1).
            mask_labels: list of (n, H', W') bool or float masks, or one (B, n, H', W') tensor.
            class_labels: list of (n,) labels, or one (B, n) tensor.
        """
        mask_labels, class_labels = check_targets(mask_labels, class_labels, self.config, class_queries_logits)
        (matches,) = self.match([(masks_queries_logits, class_queries_logits)], mask_labels, class_labels)

        def matched_logits(queries: list[Tensor]) -> Tensor:
            return torch.cat([logits[index] for logits, index in zip(masks_queries_logits, queries)])

        return self.losses(class_queries_logits, matched_logits, matches, mask_labels, class_labels)

    def match(
        self, predictions: list[tuple[Tensor, Tensor]], mask_labels: list[Tensor], class_labels: list[Tensor]
    ) -> list[Matches]:
        """(mask logits, class logits) of every prediction → its matches; one device → host transfer in all."""
        costs = [
            [
                matching_cost(masks, classes, targets, labels, self.config)
                for masks, classes, targets, labels in zip(mask_logits, class_logits, mask_labels, class_labels)
            ]
            for mask_logits, class_logits in predictions
        ]
        return assign(costs)

    def losses(
        self,
        class_logits: Tensor,
        matched_mask_logits: Callable[[list[Tensor]], Tensor],
        matches: Matches,
        mask_labels: list[Tensor],
        class_labels: list[Tensor],
    ) -> dict[str, Tensor]:
        """Class logits (B, Q, C + 1), and queries of each image → their mask logits (M, H, W), to the three losses."""
        device = class_logits.device
        pairs = [
            (queries.to(device, non_blocking=True), targets.to(device, non_blocking=True))
            for queries, targets in matches
        ]
        classes = torch.full(class_logits.shape[:2], self.config.num_labels, device=device)  # [B, Q]
        for row, labels, (queries, targets) in zip(classes, class_labels, pairs):
            row[queries] = labels[targets]
        mask_logits = matched_mask_logits([queries for queries, _ in pairs])  # [M, H, W]

        with torch.autocast(device.type, enabled=False):
            cross_entropy = F.cross_entropy(
                class_logits.float().transpose(1, 2), classes, self.empty_weight.float(), reduction="sum"
            )
            class_weight = self.empty_weight.float()[classes].sum()
            num_masks, class_weight = across_ranks(float(len(mask_logits)), class_weight)
            mask_loss, dice_loss = self._mask_losses(mask_logits.float(), pairs, mask_labels)
        return {
            "loss_mask": mask_loss / num_masks.clamp(min=1),
            "loss_dice": dice_loss / num_masks.clamp(min=1),
            "loss_cross_entropy": cross_entropy / class_weight,
        }

    def _mask_losses(self, logits: Tensor, pairs, mask_labels: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Matched logits (M, H, W) → binary cross-entropy and dice, summed over the pairs."""
        if not len(logits):
            return logits.sum(), logits.sum()  # zeros that keep the graph, so that every rank has every gradient
        config = self.config
        points = uncertain_points(
            logits, config.train_num_points, config.oversample_ratio, config.importance_sample_ratio
        )
        sizes = [len(queries) for queries, _ in pairs]
        with torch.no_grad():
            targets = torch.cat([
                sample_masks(masks[target], of_image)
                for masks, (_, target), of_image in zip(mask_labels, pairs, points.split(sizes))
            ])  # fmt: skip
        logits = sample_logits(logits, points)  # [M, R]
        mask_loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1).sum()
        inside = logits.sigmoid()
        overlap = (inside * targets).sum(1)
        dice_loss = (1 - (2 * overlap + 1) / (inside.sum(1) + targets.sum(1) + 1)).sum()
        return mask_loss, dice_loss


def across_ranks(num_masks: float, class_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Matched masks and summed class weights of this rank → their means over the ranks.

    Gradients are averaged over ranks, so dividing by the mean makes N processes equal one that has the whole batch.
    (The authors reduce only the number of masks; with one process nothing differs.)
    """
    totals = torch.stack([class_weight.new_tensor(num_masks), class_weight.detach()])
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(totals)
        totals = totals / dist.get_world_size()
    return totals[0], totals[1]


def check_targets(
    mask_labels, class_labels, config: EoMTConfig, class_logits: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """Targets as lists of one tensor an image, on the predictions' device.

    Raises:
        ValueError: when masks and labels do not pair up or, for labels on the host, when one is outside the config's.
    """
    masks, labels = list(mask_labels), list(class_labels)
    if not len(masks) == len(labels) == len(class_logits):
        raise ValueError(
            f"{len(masks)} mask_labels and {len(labels)} class_labels for {len(class_logits)} images; give one each"
        )
    for index, (of_image, classes) in enumerate(zip(masks, labels)):
        if of_image.ndim != 3 or len(of_image) != len(classes):
            raise ValueError(
                f"image {index} has mask_labels of shape {tuple(of_image.shape)} and {len(classes)} class_labels; "
                "masks must be (n, height, width) with n labels"
            )
        if classes.device.type == "cpu" and len(classes):
            low, high = int(classes.min()), int(classes.max())
            if low < 0 or high >= config.num_labels:
                wrong = low if low < 0 else high
                raise ValueError(f"image {index} has label {wrong}, outside the model's 0 to {config.num_labels - 1}")
    device = class_logits.device
    return [mask.to(device) for mask in masks], [label.to(device).long() for label in labels]
