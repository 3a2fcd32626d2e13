"""Queries → scored instance masks by the authors' rule.

Legend: `Q` queries, `C` classes, `n` predictions, `u` distinct queries among them, `g_h`, `g_w` the model's output
grid, `H`, `W` the image, `T` a tile's side.

    predictions = the top_k of the Q × C class probabilities without "no object"; a query may come with several classes
    mask        = logit > 0 at the original size
    score       = class probability × mean σ(logit) over the mask
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from .geometry import Placement
from .resampling import Resampler, tile_side

VOID = -1
_BAND = 256
"""Rows that are looked up at once."""
_MAP_BYTES = 2**27
"""Of the maps that are made at once."""


def instance_segmentation(
    mask_logits: Tensor,
    class_logits: Tensor,
    placement: Placement,
    threshold: float = 0.0,
    top_k: int = 100,
    return_binary_maps: bool = False,
    mask_threshold: float = 0.5,
) -> tuple[Tensor, list[dict]]:
    """(Q, g_h, g_w) mask logits, (Q, C + 1) class logits → map, segments {"id", "label_id", "score"} by falling score.

    Args:
        threshold: a prediction stays if its score is at least this. The authors keep all top_k: 0.
        return_binary_maps: the map is (n, H, W) bool, one whole mask a segment, overlaps and all. Otherwise it is
            (H, W) int32: the higher score wins a pixel, −1 is void, and a segment left without a pixel is not listed.
        mask_threshold: σ above which a pixel belongs to a mask.
    """
    cut = torch.logit(torch.tensor(mask_threshold, dtype=torch.float64)).item()
    logits, labels, scores, resampler = _best(mask_logits, class_logits, placement, threshold, top_k, cut)
    if return_binary_maps:
        maps = _binary_maps(logits, resampler, cut)
        return maps, [{"id": i, "label_id": c, "score": s} for i, (c, s) in enumerate(zip(labels, scores))]
    # the second class of a query finds every pixel of its mask taken
    flat = _label_map(logits, resampler, cut)
    present = [k for k, found in enumerate(_present(flat, len(labels))) if found]
    renumber = torch.full((len(labels) + 1,), VOID, dtype=torch.int32, device=flat.device)
    renumber[present] = torch.arange(len(present), dtype=torch.int32, device=flat.device)
    for rows in flat.split(_BAND):  # an index needs int64
        rows.copy_(renumber[rows.long()])  # −1 finds the last entry
    return flat, [{"id": i, "label_id": labels[k], "score": scores[k]} for i, k in enumerate(present)]


def instance_maps(
    mask_logits: Tensor, class_logits: Tensor, placement: Placement, top_k: int = 100
) -> Iterator[tuple[Tensor, int, float]]:
    """As `instance_segmentation` with binary maps, threshold 0: (map (H, W) bool, label, score) one by one, so that a
    large image's maps need not all fit in memory."""
    logits, labels, scores, resampler = _best(mask_logits, class_logits, placement, 0.0, top_k, 0.0)
    count = max(1, _MAP_BYTES // max(1, resampler.size[0] * resampler.size[1]))
    for start in range(0, len(labels), count):
        part = slice(start, start + count)
        yield from zip(_binary_maps(logits[part], resampler, 0.0), labels[part], scores[part])


def _best(mask_logits: Tensor, class_logits: Tensor, placement: Placement, threshold: float, top_k: int, cut: float):
    """→ (n, g_h, g_w) logits, labels and scores of the predictions that stay, best first; the resampler."""
    probabilities = class_logits.float().softmax(-1)[:, :-1]  # [Q, C]
    scores, index = probabilities.flatten().topk(min(top_k, probabilities.numel()))  # [n]
    index = index[scores >= threshold]  # the mean σ is at most 1: the rest cannot reach the threshold
    scores = scores[: len(index)]
    queries, labels = index // probabilities.shape[1], index % probabilities.shape[1]  # [n]

    used, position = queries.unique(return_inverse=True)  # a query with several classes is up-sampled once
    logits = mask_logits[used].float()  # [u, g_h, g_w]
    resampler = Resampler.to_image(mask_logits.shape[-2:], placement, mask_logits.device)
    scores = scores * _mask_scores(logits, resampler, cut)[position]
    order = scores.argsort(descending=True, stable=True)
    order = order[scores[order] >= threshold]
    logits, labels, scores = logits[position[order]], labels[order].tolist(), scores[order].tolist()
    return logits, labels, scores, resampler


def _present(label_map: Tensor, count: int) -> list[bool]:
    """Which of the labels 0 … count − 1 a map holds."""
    found = torch.zeros(count + 1, dtype=torch.bool, device=label_map.device)
    for rows in label_map.split(_BAND):
        found[rows.long()] = True  # −1 marks the last entry
    return found[:-1].tolist()


def _mask_scores(logits: Tensor, resampler: Resampler, cut: float) -> Tensor:
    """(u, g_h, g_w) → mean σ over each mask: (u,)."""
    area = torch.zeros(len(logits), dtype=torch.float64, device=logits.device)
    mass = torch.zeros_like(area)
    for _, active, upsampled in _reached(logits, resampler, cut):
        mask = upsampled > cut  # [k, T, T]
        area.index_add_(0, active, mask.sum((1, 2)).double())
        mass.index_add_(0, active, upsampled.sigmoid_().mul_(mask).sum((1, 2)).double())
    return (mass / (area + 1e-6)).float()


def _binary_maps(logits: Tensor, resampler: Resampler, cut: float) -> Tensor:
    """(n, g_h, g_w) → (n, H, W) bool."""
    maps = torch.zeros(len(logits), *resampler.size, dtype=torch.bool, device=logits.device)
    for tile, active, upsampled in _reached(logits, resampler, cut):
        maps[active, tile.rows, tile.columns] = upsampled > cut
    return maps


def _label_map(logits: Tensor, resampler: Resampler, cut: float) -> Tensor:
    """(n, g_h, g_w), best first → index of the first mask that holds a pixel: (H, W) int32, −1 where none does."""
    label_map = torch.full(resampler.size, VOID, dtype=torch.int32, device=logits.device)
    for tile, active, upsampled in _reached(logits, resampler, cut):
        part = label_map[tile.rows, tile.columns]
        for k, mask in zip(active.flip(0).tolist(), (upsampled > cut).flip(0)):  # the best is written last
            part.masked_fill_(mask, k)
    return label_map


def _reached(logits: Tensor, resampler: Resampler, cut: float):
    """Tiles with the queries whose mask can reach into them: (tile, (k,) indices, (k, T, T) logits).

    Interpolation never exceeds the highest cell, so a block whose cells are all at most `cut` holds no mask.
    """
    for tile in resampler.tiles(tile_side(len(logits), logits.device)):
        block = tile.block(logits)  # [u, a, b]
        active = (block.amax((1, 2)) > cut).nonzero()[:, 0]
        if len(active):
            yield tile, active, tile.upsample(block[active])
