"""Join the scored instances of tiles to instances of the image. Masks are run-length encoded and may overlap.

1. Two instances of neighboring tiles are one if they match in the common part of the tiles: same class, IoU > 0.5.
   Best scores match first.
2. A joined mask is the union of its pieces, except in the core of a tile, where it is the piece of that tile.
3. A cut piece without a match is dropped if at least half of it lies in a better instance of its class.
4. Instances of the whole image longer than a tile replace those of the tiles inside them. The masks of these tiles are
   kept if their union matches the instance.
5. Shorter instances of the whole image are added where the tiles have none of the class.
"""

from dataclasses import dataclass

import numpy as np
import torch
from pycocotools import mask as rle

from ..image_processing.rle import encode_window
from .tiles import Tile, common_span, root_of, within_span

MIN_SCORE = 0.05
"""Least score of an instance: a tile returns its best hundred, and most of those of an empty tile are noise."""


@dataclass
class _Piece:
    tile: Tile
    mask: dict  # in the tile
    box: tuple[int, int, int, int]  # top, bottom, left, right, in the image
    label: int
    score: float
    cut: bool  # by a side of the tile


class InstanceJoin:
    """Joins the predictions for the tiles, added row by row, and for the whole image.

    Args:
        size: (H, W) of the image.
        side: side of a tile (pixels).
    """

    def __init__(self, size: tuple[int, int], side: int):
        self.size, self.side = size, side
        self.pieces: list[_Piece] = []
        self.group: list[int] = []  # of each piece
        self._recent: list[tuple] = []  # (tile, its pieces) that a later tile may overlap
        self._whole: list[tuple] = []

    def add_whole(self, size: tuple[int, int], prediction: dict) -> None:
        """Add the prediction for the whole image at any size (h, w); its masks are scaled to the image."""
        scores, labels = (np.asarray(prediction[key]).tolist() for key in ("scores", "labels"))
        rows, columns = (np.arange(out) * length // out for out, length in zip(self.size, size))
        for mask, label, score in zip(prediction["masks"], labels, scores):
            if score < MIN_SCORE or not rle.area(mask):
                continue
            top, bottom, left, right = _box(mask)
            r, c = (np.flatnonzero((x >= a) & (x < b)) for x, a, b in ((rows, top, bottom), (columns, left, right)))
            pixels = rle.decode(mask)[rows[r]][:, columns[c]]
            self._whole.append((encode_window(pixels, r[0], c[0], self.size), label, score))

    def add(self, tile: Tile, prediction: dict) -> None:
        """Add the prediction for a tile: {"masks", "labels", "scores"}, best first."""
        first = len(self.pieces)
        scores, labels = (np.asarray(prediction[key]).tolist() for key in ("scores", "labels"))
        for mask, label, score in zip(prediction["masks"], labels, scores):
            if score >= MIN_SCORE and rle.area(mask):
                box = _box(mask)
                piece = (tile.rows.start + box[0], tile.rows.start + box[1])
                piece += (tile.columns.start + box[2], tile.columns.start + box[3])
                self.pieces.append(_Piece(tile, mask, piece, label, score, _reaches(box, tile)))
                self.group.append(len(self.pieces) - 1)
        own = list(range(first, len(self.pieces)))
        self._recent = [other for other in self._recent if other[0].rows.stop > tile.rows.start]
        for other, theirs in self._recent:
            rows, columns = common_span(tile.rows, other.rows), common_span(tile.columns, other.columns)
            if rows is not None and columns is not None:
                self._match(own, theirs, rows, columns)
        self._recent.append((tile, own))

    def result(self) -> dict:
        """{"size", "masks", "labels" (n,), "scores" (n,)}, best first."""
        groups: dict[int, list[_Piece]] = {}
        for index, piece in enumerate(self.pieces):
            groups.setdefault(root_of(self.group, index), []).append(piece)
        found = []
        for pieces in groups.values():
            score, alone = max(piece.score for piece in pieces), len(pieces) == 1
            found.append((_joined(pieces, self.size), pieces[0].label, score, alone and pieces[0].cut))
        found = _without_fragments(found)
        for mask, label, score in self._whole:
            found = self._with_whole(found, mask, label, score)
        found.sort(key=lambda one: -one[2])
        return {
            "size": self.size,
            "masks": [mask for mask, *_ in found],
            "labels": torch.tensor([label for _, label, *_ in found], dtype=torch.int64),
            "scores": torch.tensor([score for _, _, score, _ in found], dtype=torch.float64),
        }

    def _match(self, own: list[int], theirs: list[int], rows: slice, columns: slice) -> None:
        """Join the pieces of two tiles that match in the common part of the tiles."""
        ours, others = (self._pixels(pieces, rows, columns) for pieces in (own, theirs))
        if not ours or not others:
            return
        a, b = (np.stack(list(masks.values())).astype(np.float32) for masks in (ours, others))  # [n, pixels]
        common = a @ b.T
        iou = common / np.maximum(a.sum(1)[:, None] + b.sum(1)[None] - common, 1)
        left = dict(enumerate(others))  # column → piece
        for row, index in enumerate(ours):  # best score first
            same = [column for column, other in left.items() if self.pieces[other].label == self.pieces[index].label]
            best = max(same, key=lambda column: iou[row, column], default=None)
            if best is not None and iou[row, best] > 0.5:
                self.group[root_of(self.group, index)] = root_of(self.group, left.pop(best))

    def _pixels(self, pieces: list[int], rows: slice, columns: slice) -> dict[int, np.ndarray]:
        """{piece: its flattened pixels in this part of the image}, without empty ones."""
        found = {}
        for index in pieces:
            tile, (top, bottom, left, right) = self.pieces[index].tile, self.pieces[index].box
            if top < rows.stop and bottom > rows.start and left < columns.stop and right > columns.start:
                mask = rle.decode(self.pieces[index].mask)
                part = mask[within_span(rows, tile.rows), within_span(columns, tile.columns)].ravel()
                if part.any():
                    found[index] = part
        return found

    def _with_whole(self, found: list[tuple], mask: dict, label: int, score: float) -> list[tuple]:
        """`found` after adding an instance of the whole image (rules 4 and 5)."""
        same = [k for k, one in enumerate(found) if one[1] == label]
        if not same:
            return [*found, (mask, label, score, False)]
        masks = [found[k][0] for k in same]
        inside = rle.iou(masks, [mask], [1])[:, 0]  # share of each mask inside the new one
        top, bottom, left, right = _box(mask)
        if max(bottom - top, right - left) <= self.side:
            covered = rle.iou([mask], masks, [1] * len(masks))[0].max() >= 0.5
            return found if covered or (inside >= 0.5).any() else [*found, (mask, label, score, False)]
        pieces = [k for k, share in zip(same, inside) if share >= 0.5]
        if not pieces:
            return [*found, (mask, label, score, False)]
        joined = rle.merge([found[k][0] for k in pieces])
        rest = [one for k, one in enumerate(found) if k not in pieces]
        sharper = rle.iou([joined], [mask], [0])[0, 0] > 0.5
        score = max(score, *(found[k][2] for k in pieces))
        return [*rest, (joined if sharper else mask, label, score, False)]


def _joined(pieces: list[_Piece], size: tuple[int, int]) -> dict:
    boxes = np.array([piece.box for piece in pieces])
    top, bottom, left, right = boxes[:, 0].min(), boxes[:, 1].max(), boxes[:, 2].min(), boxes[:, 3].max()
    pixels = np.zeros((bottom - top, right - left), np.uint8)
    masks = [rle.decode(piece.mask) for piece in pieces]
    for piece, mask in zip(pieces, masks):
        _paint(pixels, mask, piece, (piece.box[0], piece.box[1]), (piece.box[2], piece.box[3]), top, left, np.maximum)
    if len(pieces) > 1:
        for piece, mask in zip(pieces, masks):
            tile = piece.tile
            rows = common_span(tile.core_rows, slice(top, bottom))
            columns = common_span(tile.core_columns, slice(left, right))
            if rows is not None and columns is not None:
                own = (rows.start, rows.stop), (columns.start, columns.stop)
                _paint(pixels, mask, piece, *own, top, left, lambda before, now: now)
    return encode_window(pixels, top, left, size)


def _paint(pixels, mask, piece: _Piece, rows, columns, top: int, left: int, combine) -> None:
    """Combine a piece's pixels in these rows and columns of the image into `pixels`, which start at (top, left)."""
    part = pixels[rows[0] - top : rows[1] - top, columns[0] - left : columns[1] - left]
    own_rows, own_columns = within_span(slice(*rows), piece.tile.rows), within_span(slice(*columns), piece.tile.columns)
    part[:] = combine(part, mask[own_rows, own_columns])


def _without_fragments(found: list[tuple]) -> list[tuple]:
    """Drop cut single pieces that lie at least by half in a better instance of their class (rule 3)."""
    kept = []
    for k, one in enumerate(found):
        mask, label, score, fragment = one
        if fragment:
            better = [other[0] for j, other in enumerate(found) if j != k and other[1] == label and other[2] > score]
            if better and rle.iou([mask], better, [1] * len(better)).max() >= 0.5:
                continue
        kept.append(one)
    return kept


def _box(mask: dict) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of an encoded mask."""
    left, top, width, height = (int(v) for v in rle.toBbox(mask))
    return top, top + height, left, left + width


def _reaches(box: tuple[int, int, int, int], tile: Tile) -> bool:
    """Whether a box in the tile reaches an open side of the tile."""
    height, width = tile.shape
    margin = max(2, max(height, width) // 128)
    near = (box[0] < margin, box[1] > height - margin, box[2] < margin, box[3] > width - margin)
    return any(touches and is_open for touches, is_open in zip(near, tile.open_sides))
