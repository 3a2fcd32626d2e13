"""The training loss: matched masks and classes, for every prediction (paper, Section 3.1; Mask2Former's losses).

P predictions · B images · Q queries · C labels · M matched pairs of the batch, as many in every prediction
R points · H, W mask logits
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ..configuration import EoMTConfig
from .matcher import Matches, match
from .points import sample_logits, sample_masks, uncertain_points


@dataclass
class GivenLogits:
    """A prediction whose mask logits (B, Q, H, W) are given, not their factors as in `heads.MaskPrediction`."""

    mask_logits: Tensor
    class_logits: Tensor

    def logits_at(self, points: Tensor) -> Tensor:
        return sample_logits(self.mask_logits, points)

    def matched_mask_logits(self, matches: Matches) -> Tensor:
        return torch.cat([logits[queries] for logits, (queries, _) in zip(self.mask_logits, matches)])


class Criterion(nn.Module):
    """Predictions and targets → losses."""

    def __init__(self, config: EoMTConfig):
        super().__init__()
        self.config = config
        self.register_buffer("empty_weight", self.class_weights())

    def class_weights(self) -> Tensor:
        """(C + 1,) fp32: weights of the classes in the cross-entropy, `no_object_weight` for the last."""
        weights = torch.ones(self.config.num_labels + 1, dtype=torch.float32)
        weights[-1] = self.config.no_object_weight
        return weights

    def forward(
        self, masks_queries_logits: Tensor, class_queries_logits: Tensor, mask_labels, class_labels
    ) -> dict[str, Tensor]:
        """One prediction's {"loss_mask", "loss_dice", "loss_cross_entropy"}, unweighted.

        Args:
            masks_queries_logits: (B, Q, H, W).
            class_queries_logits: (B, Q, C + 1).
            mask_labels: list of (n, H', W') bool or float masks, or one (B, n, H', W') tensor.
            class_labels: list of (n,) labels, or one (B, n) tensor.
        """
        (losses,) = self._unweighted(
            [GivenLogits(masks_queries_logits, class_queries_logits)], mask_labels, class_labels
        )
        return losses

    def losses(self, predictions: list, mask_labels, class_labels) -> dict[str, Tensor]:
        """Weighted losses of every prediction, each with its own matching; their sum, not their mean, is the loss.

        The last prediction's have the plain names, those before it "_0", "_1", … after theirs.
        """
        weights = {
            "loss_mask": self.config.mask_weight,
            "loss_dice": self.config.dice_weight,
            "loss_cross_entropy": self.config.class_weight,
        }
        suffixes = [*(f"_{block}" for block in range(len(predictions) - 1)), ""]
        return {
            f"{name}{suffix}": weights[name] * value
            for suffix, losses in zip(suffixes, self._unweighted(predictions, mask_labels, class_labels))
            for name, value in losses.items()
        }

    def _unweighted(self, predictions: list, mask_labels, class_labels) -> list[dict[str, Tensor]]:
        """A prediction has `class_logits` (B, Q, C + 1), `logits_at(points)` and `matched_mask_logits(matches)`."""
        class_logits = [prediction.class_logits for prediction in predictions]
        masks, labels = check_targets(mask_labels, class_labels, self.config, class_logits[-1])
        matches = match(predictions, masks, labels, self.config)
        matched_logits = [prediction.matched_mask_logits(pairs) for prediction, pairs in zip(predictions, matches)]
        with torch.autocast(masks[0].device.type, enabled=False):
            logits = torch.stack(class_logits).float()  # [P, B, Q, C + 1]
            classes = self._classes(matches, labels, logits.shape[:3])
            weights = self.empty_weight.to(logits)
            cross_entropy = F.cross_entropy(
                logits.flatten(0, 2), classes.flatten(), weights, reduction="none"
            ).unflatten(0, classes.shape)  # [P, B, Q]
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
        """(P, B, Q) the class every query is to predict; "no object" unless matched."""
        classes = torch.full(shape, self.config.num_labels, device=class_labels[0].device)
        for prediction_matches, rows in zip(matches, classes):
            for row, labels, (queries, targets) in zip(rows, class_labels, prediction_matches):
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
            rows = torch.stack([pairs[image][1] for pairs in matches])  # [P, m]
            own = points[:, first : first + rows.shape[1]]  # [P, m, R, 2]
            sampled.append(sample_masks(masks, own.flatten(0, 1), rows.flatten()).unflatten(0, rows.shape))
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
    device = class_logits.device
    return [mask.to(device) for mask in masks], [label.to(device).long() for label in labels]
