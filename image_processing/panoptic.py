"""A panoptic map from queries, by the authors' rule.

Q queries · K kept queries · C classes · g_h, g_w output grid of the model · H, W image · T side of a tile

    p_q, c_q  = max of softmax(class logits) over the C classes and "no object"
    kept      = c_q is a class and p_q > threshold
    owner     = argmax over the kept of p_q · σ(m_q), per pixel
    segment   = owned pixels with σ(m_q) ≥ mask_threshold, if |owned| / |σ(m_q) ≥ mask_threshold| is not below
                overlap_mask_area_threshold
"""

import torch
from torch import Tensor

from ..configuration.labels import VOID
from .geometry import Placement
from .resampling import BAND, Resampler, first_best, logit, tile_side

_SLACK = 1e-3  # logits; margin on the bounds for skipping queries in a tile, far above fp32 rounding


def panoptic_segmentation(
    mask_logits: Tensor,
    class_logits: Tensor,
    placement: Placement,
    threshold: float = 0.8,
    mask_threshold: float = 0.5,
    overlap_mask_area_threshold: float = 0.8,
    stuff_classes: list[int] | None = None,
) -> tuple[Tensor, list[dict]]:
    """Logits (Q, g_h, g_w) and (Q, C + 1) → map (H, W) int32 and segments {"id", "label_id", "was_fused", "score"}.

    Ids are 0, 1, … in query order; −1 is void. Further queries of a stuff class extend the segment of the first.
    """
    scores, labels = class_logits.float().softmax(-1).max(-1)  # [Q]
    kept = ((labels != class_logits.shape[-1] - 1) & (scores > threshold)).nonzero()[:, 0]
    device = mask_logits.device
    if len(kept) == 0:
        return torch.full(placement.original, VOID, dtype=torch.int32, device=device), []
    owner, areas = _owners(mask_logits[kept].float(), scores[kept], placement, mask_threshold)

    stuff = set(stuff_classes or ())
    stuff_segment: dict[int, int] = {}
    segment_of = [VOID] * (len(kept) + 1)  # the last entry is for pixels without an owner
    segments = []
    owned, claimed, both = areas.tolist()
    for k, (label, score) in enumerate(zip(labels[kept].tolist(), scores[kept].tolist())):
        if not both[k] or owned[k] / claimed[k] < overlap_mask_area_threshold:
            continue
        if label in stuff_segment:
            segment_of[k] = stuff_segment[label]
            continue
        segment_of[k] = len(segments)
        if label in stuff:
            stuff_segment[label] = len(segments)
        segments.append({"id": len(segments), "label_id": label, "was_fused": label in stuff, "score": score})
    segment_of = torch.tensor(segment_of, dtype=torch.int32, device=device)
    for rows in owner.split(BAND):
        rows.copy_(segment_of[rows.long()])
    return owner, segments


def _owners(logits: Tensor, scores: Tensor, placement: Placement, mask_threshold: float) -> tuple[Tensor, Tensor]:
    """Owner of each pixel (H, W), K where σ < mask_threshold, and areas (3, K): owned, σ ≥ mask_threshold, both.

    Interpolated values lie between the lowest and highest cell of their block. A query with an upper bound below the
    lower bound of another cannot own a pixel of the tile, and is not upsampled there.
    """
    K, device = len(logits), logits.device
    cut = logit(mask_threshold)
    resampler = Resampler.to_image(logits.shape[-2:], placement, device)
    owner = torch.empty(placement.original, dtype=torch.int32, device=device)
    areas = torch.zeros(3, K, dtype=torch.int64, device=device)
    for tile in resampler.tiles(tile_side(K, device)):
        block = tile.block(logits)  # [K, a, b]
        low, high = block.amin((1, 2)) - _SLACK, block.amax((1, 2)) + _SLACK  # [K]
        contends = scores * high.sigmoid() >= (scores * low.sigmoid()).max()
        crosses = (high >= cut) & (low < cut)  # the outline of the mask may be in the tile
        areas[1] += (low >= cut) * ~(contends | crosses) * tile.pixels
        active = (contends | crosses).nonzero()[:, 0]  # [k]
        probabilities = tile.upsample(block[active]).sigmoid_()  # [k, T, T]
        claimed = probabilities >= mask_threshold  # [k, T, T]
        areas[1].index_add_(0, active, claimed.sum((1, 2)))
        winner = first_best(probabilities.mul_(scores[active, None, None]))[1]  # [T, T]
        inside = claimed.gather(0, winner[None])[0]
        winner = active[winner]
        areas[0] += winner.flatten().bincount(minlength=K)
        winner = winner.masked_fill_(~inside, K)
        areas[2] += winner.flatten().bincount(minlength=K + 1)[:K]
        owner[tile.rows, tile.columns] = winner.int()
    return owner, areas
