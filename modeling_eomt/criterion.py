"""The training loss: matched masks and classes, for every prediction (paper, Section 3.1; Mask2Former's losses).

P predictions · B images · Q queries · C labels · M matched pairs of the batch, as many in every prediction
R points · H, W mask logits
"""

from functools import partial

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ..configuration import EoMTConfig
from .matcher import Matches, match
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
        masks, labels = check_targets(mask_labels, class_labels, self.config, class_queries_logits)
        logits_at = partial(sample_logits, masks_queries_logits)
        (matches,) = match([(logits_at, class_queries_logits)], masks, labels, self.config)
        matched = torch.cat([logits[queries] for logits, (queries, _) in zip(masks_queries_logits, matches)])
        return self.losses([matched], [class_queries_logits], [matches], masks, labels)[0]

    def losses(
        self,
        matched_mask_logits: list[Tensor],
        class_logits: list[Tensor],
        matches: list[Matches],
        mask_labels: list[Tensor],
        class_labels: list[Tensor],
    ) -> list[dict[str, Tensor]]:
        """Of each prediction the matched mask logits (M, H, W), class logits (B, Q, C + 1), matches → its losses."""
        device = class_logits[0].device
        with torch.autocast(device.type, enabled=False):
            logits = torch.stack(class_logits).float()  # [P, B, Q, C + 1]
            classes = self._classes(matches, class_labels, logits.shape[:3])
            weights = self.empty_weight.float()
            cross_entropy = F.cross_entropy(
                logits.flatten(0, 2), classes.flatten(), weights, reduction="none"
            ).unflatten(0, classes.shape)  # [P, B, Q]
            mask_logits = torch.stack(matched_mask_logits).float()  # [P, M, H, W]
            mask_loss, dice_loss = self._mask_losses(mask_logits, matches, mask_labels)  # [P], [P]
            num_masks, class_weights = across_ranks(mask_logits.shape[1], weights[classes].sum((1, 2)))
        losses = torch.stack(
            [
                mask_loss / num_masks.clamp(min=1),
                dice_loss / num_masks.clamp(min=1),
                cross_entropy.sum((1, 2)) / class_weights,
            ],
            dim=1,
        )
        return [dict(zip(("loss_mask", "loss_dice", "loss_cross_entropy"), of_one)) for of_one in losses]

    def _classes(self, matches: list[Matches], class_labels: list[Tensor], shape: torch.Size) -> Tensor:
        """(P, B, Q) the class every query is to predict; "no object" unless matched."""
        classes = torch.full(shape, self.config.num_labels, device=class_labels[0].device)
        for of_prediction, rows in zip(matches, classes):
            for row, labels, (queries, targets) in zip(rows, class_labels, of_prediction):
                row[queries] = labels[targets]
        return classes

    def _mask_losses(self, logits: Tensor, matches: list[Matches], mask_labels: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Matched logits (P, M, H, W) → binary cross-entropy and dice, (P,) each, summed over the pairs."""
        if not logits.shape[1]:
            nothing = logits.sum((1, 2, 3))  # zeros that keep the graph, so that every rank has every gradient
            return nothing, nothing
        config, shape = self.config, logits.shape[:2]
        logits = logits.flatten(0, 1)  # [P·M, H, W]
        points = uncertain_points(
            logits, config.train_num_points, config.oversample_ratio, config.importance_sample_ratio
        )
        targets = self._targets_at(points.unflatten(0, shape), matches, mask_labels)  # [P·M, R]
        logits = sample_logits(logits[:, None], points)[:, 0]  # [P·M, R]
        cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(1)
        inside = logits.sigmoid()
        overlap = (inside * targets).sum(1)
        dice = 1 - (2 * overlap + 1) / (inside.sum(1) + targets.sum(1) + 1)
        return cross_entropy.unflatten(0, shape).sum(1), dice.unflatten(0, shape).sum(1)

    @staticmethod
    @torch.no_grad()
    def _targets_at(points: Tensor, matches: list[Matches], mask_labels: list[Tensor]) -> Tensor:
        """The target of every pair at the pair's own points (P, M, R, 2) → (P·M, R), sampled image by image."""
        sampled, first = [], 0
        for image, masks in enumerate(mask_labels):
            rows = torch.stack([of_prediction[image][1] for of_prediction in matches])  # [P, m]
            of_image = points[:, first : first + rows.shape[1]]  # [P, m, R, 2]
            sampled.append(sample_masks(masks, of_image.flatten(0, 1), rows.flatten()).unflatten(0, rows.shape))
            first += rows.shape[1]
        return torch.cat(sampled, dim=1).flatten(0, 1)


def across_ranks(num_masks: int, class_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Matched masks, and summed class weights of each prediction (P,), of this rank → their means over the ranks.

    Gradients are averaged over ranks, so dividing by the mean makes N processes equal one that has the whole batch.
    (The authors reduce only the number of masks; with one process nothing differs.)
    """
    totals = F.pad(class_weights.detach(), (1, 0), value=float(num_masks))
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(totals)
        totals = totals / dist.get_world_size()
    return totals[0], totals[1:]


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
