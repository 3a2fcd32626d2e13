"""A label map from queries: class scores, stitched over windows (authors' rule; confidence: paper Sec. C).

V windows of one image · Q queries · C classes · g_h, g_w output grid of the model · h, w resized image
H, W original image · T side of a tile · a, b block of the resized image under a tile

    scores of a window = Σ_q softmax(class logits)_{q, c ≠ no object} · σ(mask logits at the window's size)
    canvas             = mean of the windows that cover a pixel, (C, h, w)
    result             = argmax over c of the canvas, bilinearly resized to (H, W)

The canvas is computed tile by tile from the windows under the tile, and never kept.
"""

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from .geometry import Placement
from .resampling import Resampler, Tile, bilinear_matrix, cells_used, first_best

_TILE_BYTES = 2**25  # of the largest tensor of a tile: masks or scores of its block of the canvas


def semantic_segmentation(mask_logits: Tensor, class_logits: Tensor, placement: Placement) -> tuple[Tensor, Tensor]:
    """Labels (H, W) int32 and confidence (H, W) of one image, from logits (V, Q, g_h, g_w) and (V, Q, C + 1).

    The confidence is the winning score, as in BRAVO. It is not a probability: scores can exceed 1 and are clipped.
    """
    labels = torch.empty(placement.original, dtype=torch.int32, device=mask_logits.device)
    confidence = torch.empty(placement.original, dtype=torch.float32, device=mask_logits.device)
    for tile, block in _canvas_tiles(mask_logits, class_logits, placement):
        # Resized scores lie between the extremes of the block: a class below another's minimum cannot win in this tile.
        high, low = block.amax((1, 2)), block.amin((1, 2))  # [C]
        able = (high >= low.max() * (1 - 1e-5)).nonzero()[:, 0]
        best, winner = first_best(tile.upsample(block[able]))  # [T, T]
        labels[tile.rows, tile.columns] = able[winner].int()
        confidence[tile.rows, tile.columns] = best.clamp(max=1)
    return labels, confidence


def semantic_scores(mask_logits: Tensor, class_logits: Tensor, placement: Placement) -> Tensor:
    """The scores of all classes (C, H, W). Arguments as for `semantic_segmentation`."""
    scores = mask_logits.new_empty(class_logits.shape[-1] - 1, *placement.original, dtype=torch.float32)
    for tile, block in _canvas_tiles(mask_logits, class_logits, placement):
        scores[:, tile.rows, tile.columns] = tile.upsample(block)
    return scores


def _canvas_tiles(mask_logits: Tensor, class_logits: Tensor, placement: Placement) -> Iterator[tuple[Tile, Tensor]]:
    """Tiles of the result, each with its block of the canvas (C, a, b)."""
    device = mask_logits.device
    weights = class_logits.float().softmax(-1)[..., :-1].transpose(-1, -2)  # [V, C, Q]
    resampler = Resampler.plain(placement.resized, placement.original, device)
    shrink = max(r / o for r, o in zip(placement.resized, placement.original))
    side = (_TILE_BYTES / 4 / max(weights.shape[1:])) ** 0.5 / max(shrink, 1.0)
    for tile in resampler.tiles(max(8, min(256, int(side)))):
        yield tile, _canvas_block(mask_logits, weights, placement, tile.grid_rows, tile.grid_columns)


def _canvas_block(mask_logits: Tensor, weights: Tensor, placement: Placement, rows: slice, columns: slice) -> Tensor:
    """canvas[rows, columns], the mean of the scores of all windows: (C, a, b)."""
    device = mask_logits.device
    shape = (rows.stop - rows.start, columns.stop - columns.start)
    total = torch.zeros(weights.shape[1], *shape, device=device)  # [C, a, b]
    coverage = torch.zeros(shape, device=device)
    for v, (top, left) in enumerate(placement.windows):
        first, last = max(rows.start, top), min(rows.stop, top + placement.input_size[0])
        start, stop = max(columns.start, left), min(columns.stop, left + placement.input_size[1])
        if first >= last or start >= stop:
            continue
        grid_rows, row_weights = _band(mask_logits.shape[-2], placement.input_size[0], first - top, last - top)
        grid_columns, column_weights = _band(mask_logits.shape[-1], placement.input_size[1], start - left, stop - left)
        block = mask_logits[v, :, grid_rows, grid_columns].float()
        masks = ((row_weights.to(device) @ block) @ column_weights.to(device).T).sigmoid_()  # [Q, a', b']
        here = (slice(first - rows.start, last - rows.start), slice(start - columns.start, stop - columns.start))
        total[:, *here] += (weights[v] @ masks.flatten(1)).view(-1, *masks.shape[1:])
        coverage[here] += 1
    return total.div_(coverage)


@lru_cache(maxsize=256)
def _band(grid: int, side: int, start: int, stop: int) -> tuple[slice, Tensor]:
    """Rows start:stop of the bilinear matrix from grid to side: used cells, and weights (stop − start, cells) fp32."""
    cells, part = cells_used(_matrix(grid, side)[start:stop])
    return cells, part.contiguous()


@lru_cache(maxsize=16)
def _matrix(grid: int, side: int) -> Tensor:
    return bilinear_matrix(grid, side).float()
