"""Scored instance masks from queries, by the authors' rule.

Q queries · C classes · n predictions · u distinct queries among them
g_h, g_w output grid of the model · H, W image · T side of a tile

    predictions = the top_k of the Q × C class probabilities without "no object"; a query can have several classes
    mask        = logit > 0 at the original size
    score       = class probability × mean σ(logit) over the mask
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..configuration.labels import VOID
from .geometry import Placement
from .resampling import BAND, Resampler, logit, tile_side


def instance_segmentation(
    mask_logits: Tensor,
    class_logits: Tensor,
    placement: Placement,
    threshold: float = 0.0,
    top_k: int = 100,
    return_binary_maps: bool = False,
    mask_threshold: float = 0.5,
) -> tuple[Tensor, list[dict]]:
    """The instances of one image: a map, and segments {"id", "label_id", "score"}, best score first.

    Args:
        mask_logits, class_logits: (Q, g_h, g_w) and (Q, C + 1).
        threshold: least score of a prediction. The authors keep all top_k: 0.
        return_binary_maps: the map is (n, H, W) bool with complete masks, which may overlap. Otherwise it is (H, W)
            int32: the higher score wins a pixel, −1 is void, and segments without pixels are not listed.
        mask_threshold: σ above which a pixel belongs to a mask.
    """
    cut = logit(mask_threshold)
    found = _candidates(mask_logits, class_logits, placement, top_k, threshold)
    resampler = found.resampler
    scores = found.scores * _mask_scores(found.logits, resampler, cut)[found.position]
    order = scores.argsort(descending=True, stable=True)
    order = order[scores[order] >= threshold]
    logits, labels, scores = found.logits[found.position[order]], found.labels[order].tolist(), scores[order].tolist()
    if return_binary_maps:
        maps = _binary_maps(logits, resampler, cut)
        return maps, [{"id": i, "label_id": c, "score": s} for i, (c, s) in enumerate(zip(labels, scores))]
    # a second class of a query is not in the map: its better class has every pixel of the mask
    flat = _label_map(logits, resampler, cut)
    present = _present(flat, len(labels))
    renumber = torch.full((len(labels) + 1,), VOID, dtype=torch.int32, device=flat.device)
    renumber[present] = torch.arange(len(present), dtype=torch.int32, device=flat.device)
    for rows in flat.split(BAND):
        rows.copy_(renumber[rows.long()])  # −1 is the index of the last entry
    return flat, [{"id": i, "label_id": labels[k], "score": scores[k]} for i, k in enumerate(present)]


def row_runs(mask: Tensor) -> list[int]:
    """Runs of an (H, W) mask in transformers' form: start and length in turn, along the rows, counted from 1."""
    edges = torch.nn.functional.pad(mask.flatten().int(), (1, 1)).diff().nonzero()[:, 0]
    starts, stops = edges[::2], edges[1::2]
    return torch.stack([starts + 1, stops - starts], dim=1).flatten().tolist()


def encoded_instances(
    mask_logits: Tensor, class_logits: Tensor, placement: Placement, top_k: int = 100, mask_threshold: float = 0.5
) -> tuple[list[dict], list[int], list[float]]:
    """All instances of one image, best first: masks in COCO's run-length encoding, labels and scores.

    The result of `instance_segmentation` with binary maps and threshold 0, without an (H, W) map in memory.
    """
    found = _candidates(mask_logits, class_logits, placement, top_k)
    masks, mask_scores = _encoded(found.logits, found.resampler, logit(mask_threshold))
    scores = found.scores * mask_scores[found.position]
    order = scores.argsort(descending=True, stable=True)
    masks = [masks[k] for k in found.position[order].tolist()]
    return masks, found.labels[order].tolist(), scores[order].tolist()


@dataclass(frozen=True)
class _Candidates:
    """The n most probable pairs (query, class), and the u queries among them, each of which is upsampled once."""

    logits: Tensor  # (u, g_h, g_w)
    position: Tensor  # (n,): query of each candidate, among the u
    labels: Tensor  # (n,)
    scores: Tensor  # (n,), class probabilities, descending
    resampler: Resampler


def _candidates(
    mask_logits: Tensor, class_logits: Tensor, placement: Placement, top_k: int, threshold: float = 0.0
) -> _Candidates:
    probabilities = class_logits.float().softmax(-1)[:, :-1]  # [Q, C]
    scores, index = probabilities.flatten().topk(min(top_k, probabilities.numel()))  # [n]
    index = index[scores >= threshold]  # the mean σ is at most 1, so the others cannot reach the threshold
    queries, labels = index // probabilities.shape[1], index % probabilities.shape[1]  # [n]
    used, position = queries.unique(return_inverse=True)
    resampler = Resampler.to_image(mask_logits.shape[-2:], placement, mask_logits.device)
    return _Candidates(mask_logits[used].float(), position, labels, scores[: len(index)], resampler)


def _present(label_map: Tensor, count: int) -> list[int]:
    """The labels of 0 … count − 1 that are in a map."""
    found = torch.zeros(count + 1, dtype=torch.bool, device=label_map.device)
    for rows in label_map.split(BAND):
        found[rows.long()] = True  # −1 is the index of the last entry
    return [label for label, is_present in enumerate(found[:-1].tolist()) if is_present]


def _mask_scores(logits: Tensor, resampler: Resampler, cut: float) -> Tensor:
    """Mean σ over each mask: (u,)."""
    area = torch.zeros(len(logits), dtype=torch.float64, device=logits.device)
    mass = torch.zeros_like(area)
    for _, active, upsampled in _reached(logits, resampler, cut):
        area.index_add_(0, active, (upsampled > cut).sum((1, 2)).double())
        mass.index_add_(0, active, _mass(upsampled, cut))
    return _mean(mass, area)


def _mass(upsampled: Tensor, cut: float) -> Tensor:
    """Sum of σ over each mask: (k,) float64. Overwrites the logits (k, T, T)."""
    outside = float("-inf")  # σ is 0
    return torch.threshold_(upsampled, cut, outside).sigmoid_().sum((1, 2)).double()


def _mean(mass: Tensor, area: Tensor) -> Tensor:
    return (mass / (area + 1e-6)).float()


def _encoded(logits: Tensor, resampler: Resampler, cut: float) -> tuple[list[dict], Tensor]:
    """u encoded masks, and the mean σ over each: (u,)."""
    from .rle import encode_runs, rle_areas, run_ends  # imports pycocotools, which `import eomt` must not

    mass = torch.zeros(len(logits), dtype=torch.float64, device=logits.device)
    ends = [[np.zeros(0, np.int64)] for _ in range(len(logits))]  # of the runs of each mask, tile by tile
    for tile, active, upsampled in _reached(logits, resampler, cut):
        masks = (upsampled > cut).cpu().numpy()  # [k, T, T]
        for k, mask in zip(active.tolist(), masks):
            ends[k].append(run_ends(mask, tile.rows.start, tile.columns.start, resampler.size[0]))
        mass.index_add_(0, active, _mass(upsampled, cut))
    masks = [encode_runs(np.concatenate(parts), resampler.size) for parts in ends]
    area = torch.from_numpy(rle_areas(masks)).to(mass)
    return masks, _mean(mass, area)


def _binary_maps(logits: Tensor, resampler: Resampler, cut: float) -> Tensor:
    """Masks (n, H, W) bool at the size of the image."""
    maps = torch.zeros(len(logits), *resampler.size, dtype=torch.bool, device=logits.device)
    for tile, active, upsampled in _reached(logits, resampler, cut):
        maps[active, tile.rows, tile.columns] = upsampled > cut
    return maps


def _label_map(logits: Tensor, resampler: Resampler, cut: float) -> Tensor:
    """Index of the first mask at each pixel, −1 without a mask: (H, W) int32. Logits are ordered best first."""
    label_map = torch.full(resampler.size, VOID, dtype=torch.int32, device=logits.device)
    for tile, active, upsampled in _reached(logits, resampler, cut):
        part = label_map[tile.rows, tile.columns]
        for k, mask in zip(active.flip(0).tolist(), (upsampled > cut).flip(0)):  # the best is written last
            part.masked_fill_(mask, k)
    return label_map


def _reached(logits: Tensor, resampler: Resampler, cut: float):
    """Yield (tile, (k,) indices, (k, T, T) logits) for the queries with a possible mask in each tile.

    Interpolation never exceeds the highest cell, so there is no mask in a block with cells of at most `cut`.
    """
    for tile in resampler.tiles(tile_side(len(logits), logits.device)):
        block = tile.block(logits)  # [u, a, b]
        active = (block.amax((1, 2)) > cut).nonzero()[:, 0]
        if len(active):
            yield tile, active, tile.upsample(block[active])
