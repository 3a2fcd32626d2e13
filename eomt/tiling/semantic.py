"""Join the semantic maps of tiles: the class of a pixel is that of the tile with the nearest center.

Scores of neighbors are not averaged: the scores of one row of tiles are larger than the map of the image (150 classes,
12,000 pixels, tiles of 640: 4.6 GB). A tile beyond its core is context only.
"""

import torch

from .tiles import Tile, within_span


class SemanticJoin:
    """Joins the predictions for the tiles of an image of `size` (H, W), in any order."""

    def __init__(self, size: tuple[int, int], side: int):
        self.size = size
        self.maps: dict[str, torch.Tensor] = {}

    def add(self, tile: Tile, prediction: dict) -> None:
        """Add the prediction for a tile: {"segmentation" (h, w)} and, if it was asked for, "confidence" (h, w)."""
        rows, columns = within_span(tile.core_rows, tile.rows), within_span(tile.core_columns, tile.columns)
        for name, found in prediction.items():
            if name not in self.maps:
                dtype = found.dtype if found.is_floating_point() else torch.int32
                self.maps[name] = torch.empty(self.size, dtype=dtype)
            self.maps[name][tile.core_rows, tile.core_columns] = found[rows, columns]

    def result(self) -> dict:
        """{"segmentation" (H, W) int32} and "confidence" (H, W)."""
        return self.maps
