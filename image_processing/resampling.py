"""Upsampling by two small matrices, tile by tile.

g_h, g_w output grid of the model · H, W result · T side of a tile · a, b block of the grid under a tile · K planes

Bilinear resizing is linear and separable, and so is cropping. The authors' path from logits to image size (resize to
the input size, crop the padding, resize to the original size) is therefore  R · logits · Cᵀ  with R (H, g_h) and
C (W, g_w) fixed per image. Rows of R and C have few neighboring non-zeros, so a tile of the result needs a small block
of the grid. A full-resolution tensor per query is never allocated.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .geometry import Placement

BAND = 256  # rows of a map per look-up: int64 indices of the complete map would need twice its memory


def bilinear_matrix(source: int, target: int, rows: slice = slice(None)) -> Tensor:
    """Weights (target, source) float64 of `F.interpolate(mode="bilinear", align_corners=False)`, or some rows of them.

    Positions are computed in fp32 as in torch, so that results differ by rounding only. (For a smaller target, torch's
    kernels differ by a unit in the last place of the position: 3e-5 of a pixel at 400 pixels.)
    """
    scale = torch.tensor(source, dtype=torch.float32) / target
    position = ((torch.arange(target, dtype=torch.float32)[rows] + 0.5) * scale - 0.5).clamp(min=0)  # [target]
    low = position.floor().long().clamp(max=source - 1)
    high = (low + 1).clamp(max=source - 1)
    fraction = (position - low).double()
    weights = torch.zeros(len(position), source, dtype=torch.float64)
    weights.scatter_add_(1, low[:, None], (1 - fraction)[:, None])
    weights.scatter_add_(1, high[:, None], fraction[:, None])
    return weights


def cells_used(weights: Tensor) -> tuple[slice, Tensor]:
    """The source cells that some rows of a bilinear matrix use, and their weights (rows, cells)."""
    used = weights.any(0).nonzero()[:, 0]
    cells = slice(int(used[0]), int(used[-1]) + 1)
    return cells, weights[:, cells]


def axis_weights(grid: int, input_side: int, valid: int, target: int) -> Tensor:
    """Weights (target, grid), float64, along one axis: resize grid to input side, crop to `valid`, resize to target."""
    to_input = bilinear_matrix(grid, input_side)[:valid]  # [valid, grid]
    return bilinear_matrix(valid, target) @ to_input if valid != target else to_input


@dataclass(frozen=True)
class BilinearRows:
    """`bilinear_matrix`, computed by rows on indexing: between two long sides it would take gigabytes."""

    source: int
    target: int

    def __len__(self) -> int:
        return self.target

    def __getitem__(self, rows: slice) -> Tensor:
        return bilinear_matrix(self.source, self.target, rows)


@dataclass(frozen=True)
class Tile:
    """A rectangle of the result, and the block of the grid under it."""

    rows: slice
    columns: slice
    grid_rows: slice
    grid_columns: slice
    row_weights: Tensor  # (T, a)
    column_weights: Tensor  # (b, T)

    @property
    def pixels(self) -> int:
        return (self.rows.stop - self.rows.start) * (self.columns.stop - self.columns.start)

    def block(self, grid: Tensor) -> Tensor:
        """The block (…, a, b) of a grid (…, g_h, g_w)."""
        return grid[..., self.grid_rows, self.grid_columns]

    def upsample(self, block: Tensor) -> Tensor:
        """Upsample a block (K, a, b) to (K, T, T)."""
        return (self.row_weights @ block) @ self.column_weights


class Resampler:
    """Resampling of (K, g_h, g_w) to (K, H, W), one tile at a time."""

    def __init__(self, rows: Tensor | BilinearRows, columns: Tensor | BilinearRows, device: torch.device | str = "cpu"):
        self.rows, self.columns = rows, columns  # (H, g_h), (W, g_w), float64 on the CPU
        self.size = (len(rows), len(columns))
        self.device = device

    @classmethod
    def to_image(cls, grid: tuple[int, int], placement: Placement, device="cpu") -> "Resampler":
        """From the output grid of a padded input to the original image."""
        rows, columns = zip(grid, placement.input_size, placement.resized, placement.original)
        return cls(axis_weights(*rows), axis_weights(*columns), device)

    @classmethod
    def plain(cls, source: tuple[int, int], target: tuple[int, int], device="cpu") -> "Resampler":
        """One bilinear resize."""
        return cls(BilinearRows(source[0], target[0]), BilinearRows(source[1], target[1]), device)

    def tiles(self, side: int) -> Iterator[Tile]:
        """Tiles of at most side × side pixels, row by row."""
        columns = [self._part(self.columns, start, side) for start in range(0, self.size[1], side)]
        for start in range(0, self.size[0], side):
            rows, grid_rows, row_weights = self._part(self.rows, start, side)
            for part, grid_columns, column_weights in columns:
                yield Tile(rows, part, grid_rows, grid_columns, row_weights, column_weights.T)

    def _part(self, weights: Tensor | BilinearRows, start: int, side: int) -> tuple[slice, slice, Tensor]:
        cells, part = cells_used(weights[start : start + side])
        return slice(start, start + len(part)), cells, part.to(self.device, torch.float32)


def first_best(planes: Tensor) -> tuple[Tensor, Tensor]:
    """The highest value of (K, T, T) at each pixel, and its first plane: (T, T), (T, T) int64.

    Equal to `planes.max(0)`, which is 4 to 25 times slower on a CPU.
    """
    if planes.device.type != "cpu":
        return planes.max(0)
    best = planes.amax(0)
    index = torch.zeros(best.shape, dtype=torch.int32)
    for k in range(len(planes) - 1, 0, -1):
        index.masked_fill_(planes[k] == best, k)
    return best, index.masked_fill_(planes[0] == best, 0).long()


def tile_side(planes: int, device: torch.device | str = "cpu") -> int:
    """Side of a tile with this number of planes: small enough for the cache of a core, or 256 MB on an accelerator."""
    if torch.device(device).type == "cpu":
        return 256 if planes <= 32 else 128
    return max(256, int((2**26 / max(planes, 1)) ** 0.5))


def logit(probability: float) -> float:
    """The logit at which σ has this value: masks are compared before σ."""
    return torch.logit(torch.tensor(probability, dtype=torch.float64)).item()
