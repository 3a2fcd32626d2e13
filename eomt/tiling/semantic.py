"""Join the semantic maps of tiles: a pixel gets the class of the tile whose center is nearest.

Scores of neighbors are not averaged: 150 classes of one row of tiles are more than the whole map (at 12,000 pixels and
tiles of 640, 4.6 GB). What a tile sees beyond its core is context.
"""

import torch

from .tiles import Tile, within_span


class SemanticJoin:
    """Joins the predictions for the tiles, in any order. `size` (H, W) is the image's."""

    def __init__(self, size: tuple[int, int], side: int):
        self.size = size
        self.maps: dict[str, torch.Tensor] = {}

    def add(self, tile: Tile, prediction: dict) -> None:
        """Add the prediction for a tile: {"segmentation" (h, w)} and, if it was asked for, "confidence" (h, w)."""
        rows, columns = within_span(tile.core_rows, tile.rows), within_span(tile.core_columns, tile.columns)
        for name, found in prediction.items():
            kind = found.dtype if found.is_floating_point() else torch.int32
            joined = self.maps.setdefault(name, torch.empty(self.size, dtype=kind))
            joined[tile.core_rows, tile.core_columns] = found[rows, columns].to(kind)

    def result(self) -> dict:
        """{"segmentation" (H, W) int32} and "confidence" (H, W)."""
        return self.maps
