"""Join the scored instances of tiles to instances of the image. Masks are run-length encoded and may overlap.

1. Two instances of neighboring tiles are one if they match in the common part of the tiles: same class, IoU > 0.5.
   Best scores match first.
2. A joined mask is the union of its pieces, except in the core of a tile, where it is the piece of that tile.
3. A cut piece without a match is dropped if at least half of it lies in a better instance of its class.
4. Instances of the whole image longer than a tile replace those of the tiles inside them. The masks of these tiles are
   kept if their union matches the instance.
5. Shorter instances of the whole image are added where the tiles have none of the class.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from pycocotools import mask as rle

from ..image_processing.rle import encode_window
from .tiles import Tile, common_span, root_of, source_indices, within_span

MIN_SCORE = 0.05  # of an instance: a tile returns its best hundred, and most of those of an empty tile are noise

Box = tuple[int, int, int, int]  # top, bottom, left, right (pixels)


@dataclass
class _Piece:
    """An instance of one tile."""

    tile: Tile
    mask: dict  # in the tile
    box: Box  # in the image
    label: int
    score: float
    cut: bool  # by a side of the tile


@dataclass(eq=False)  # compared by identity
class _Instance:
    """An instance of the image."""

    mask: dict
    label: int
    score: float
    is_fragment: bool = False  # a cut piece without a match


class InstanceJoin:
    """Joins the predictions for the tiles, added row by row, and for the whole image.

    Args:
        size: (H, W) of the image.
        side: side of a tile (pixels).
    """

    def __init__(self, size: tuple[int, int], side: int):
        self.size, self.side = size, side
        self.pieces: list[_Piece] = []
        self.parent: list[int] = []  # of each piece; pieces of one instance have one root
        self._recent: list[tuple[Tile, list[int]]] = []  # tiles that a later one may overlap, and their pieces
        self._whole: list[_Instance] = []

    def add_whole(self, size: tuple[int, int], prediction: dict) -> None:
        """Add the prediction for the whole image at any size (h, w); its masks are scaled to the image."""
        rows, columns = source_indices(size, self.size)
        for mask, label, score in _usable(prediction):
            top, bottom, left, right = _box(mask)
            inside_rows = np.flatnonzero((rows >= top) & (rows < bottom))
            inside_columns = np.flatnonzero((columns >= left) & (columns < right))
            pixels = rle.decode(mask)[rows[inside_rows]][:, columns[inside_columns]]
            mask = encode_window(pixels, inside_rows[0], inside_columns[0], self.size)
            self._whole.append(_Instance(mask, label, score))

    def add(self, tile: Tile, prediction: dict) -> None:
        """Add the prediction for a tile: {"masks", "labels", "scores"}, best first."""
        first = len(self.pieces)
        for mask, label, score in _usable(prediction):
            top, bottom, left, right = box = _box(mask)
            y, x = tile.rows.start, tile.columns.start
            in_image = (y + top, y + bottom, x + left, x + right)
            self.parent.append(len(self.pieces))
            self.pieces.append(_Piece(tile, mask, in_image, label, score, _is_cut(box, tile)))
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
            groups.setdefault(root_of(self.parent, index), []).append(piece)
        found = []
        for pieces in groups.values():
            score = max(piece.score for piece in pieces)
            is_fragment = len(pieces) == 1 and pieces[0].cut
            found.append(_Instance(_joined(pieces, self.size), pieces[0].label, score, is_fragment))
        found = [one for one in found if not (one.is_fragment and _is_covered(one, found))]
        for instance in self._whole:
            found = self._with_whole(found, instance)
        found.sort(key=lambda one: -one.score)
        return {
            "size": self.size,
            "masks": [one.mask for one in found],
            "labels": torch.tensor([one.label for one in found], dtype=torch.int64),
            "scores": torch.tensor([one.score for one in found], dtype=torch.float64),
        }

    def _match(self, own: list[int], theirs: list[int], rows: slice, columns: slice) -> None:
        """Join the pieces of two tiles that match in the common part of the tiles (rule 1)."""
        ours, others = self._pixels(own, rows, columns), self._pixels(theirs, rows, columns)
        if not ours or not others:
            return
        a = np.stack(list(ours.values())).astype(np.float32)  # [n, pixels]
        b = np.stack(list(others.values())).astype(np.float32)  # [m, pixels]
        common = a @ b.T
        iou = common / np.maximum(a.sum(1)[:, None] + b.sum(1)[None] - common, 1)
        unmatched = dict(enumerate(others))  # column → piece
        for row, index in enumerate(ours):  # best score first
            label = self.pieces[index].label
            same = [column for column, other in unmatched.items() if self.pieces[other].label == label]
            best = max(same, key=lambda column: iou[row, column], default=None)
            if best is not None and iou[row, best] > 0.5:
                other = unmatched.pop(best)
                self.parent[root_of(self.parent, index)] = root_of(self.parent, other)

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

    def _with_whole(self, found: list[_Instance], new: _Instance) -> list[_Instance]:
        """`found` after adding an instance of the whole image (rules 4 and 5)."""
        same = [one for one in found if one.label == new.label]
        if not same:
            return [*found, new]
        masks = [one.mask for one in same]
        inside = rle.iou(masks, [new.mask], [1])[:, 0] >= 0.5  # at least half of each mask
        top, bottom, left, right = _box(new.mask)
        if max(bottom - top, right - left) <= self.side:
            covered = rle.iou([new.mask], masks, [1] * len(masks))[0] >= 0.5
            return found if covered.any() or inside.any() else [*found, new]
        pieces = [one for one, is_inside in zip(same, inside) if is_inside]
        if not pieces:
            return [*found, new]
        union = rle.merge([piece.mask for piece in pieces])
        matches = rle.iou([union], [new.mask], [0])[0, 0] > 0.5
        score = max(new.score, *(piece.score for piece in pieces))
        rest = [one for one in found if one not in pieces]
        return [*rest, _Instance(union if matches else new.mask, new.label, score)]


def _usable(prediction: dict) -> Iterator[tuple[dict, int, float]]:
    """Mask, label and score of the instances that are not noise."""
    labels, scores = np.asarray(prediction["labels"]).tolist(), np.asarray(prediction["scores"]).tolist()
    for mask, label, score in zip(prediction["masks"], labels, scores):
        if score >= MIN_SCORE and rle.area(mask):
            yield mask, label, score


def _joined(pieces: list[_Piece], size: tuple[int, int]) -> dict:
    """The mask of an instance of the image from its pieces (rule 2)."""
    boxes = np.array([piece.box for piece in pieces])
    top, bottom, left, right = boxes[:, 0].min(), boxes[:, 1].max(), boxes[:, 2].min(), boxes[:, 3].max()
    pixels = np.zeros((bottom - top, right - left), np.uint8)

    def parts(mask: np.ndarray, tile: Tile, rows: slice, columns: slice) -> tuple[np.ndarray, np.ndarray]:
        """The part of `pixels` and the part of a piece's mask in these rows and columns of the image."""
        part = pixels[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        return part, mask[within_span(rows, tile.rows), within_span(columns, tile.columns)]

    masks = [rle.decode(piece.mask) for piece in pieces]
    for piece, mask in zip(pieces, masks):
        part, own = parts(mask, piece.tile, slice(*piece.box[:2]), slice(*piece.box[2:]))
        part |= own
    for piece, mask in zip(pieces, masks):
        rows = common_span(piece.tile.core_rows, slice(top, bottom))
        columns = common_span(piece.tile.core_columns, slice(left, right))
        if rows is not None and columns is not None:
            part, own = parts(mask, piece.tile, rows, columns)
            part[:] = own
    return encode_window(pixels, top, left, size)


def _is_covered(one: _Instance, found: list[_Instance]) -> bool:
    """Whether at least half of an instance lies in a better one of its class (rule 3)."""
    better = [other.mask for other in found if other.label == one.label and other.score > one.score]
    return bool(better) and rle.iou([one.mask], better, [1] * len(better)).max() >= 0.5


def _box(mask: dict) -> Box:
    """The box of an encoded mask."""
    left, top, width, height = (int(v) for v in rle.toBbox(mask))
    return top, top + height, left, left + width


def _is_cut(box: Box, tile: Tile) -> bool:
    """Whether a box in the tile reaches an open side of the tile."""
    height, width = tile.shape
    margin = max(2, max(height, width) // 128)  # masks can end one cell before the border
    top, bottom, left, right = box
    near = (top < margin, bottom > height - margin, left < margin, right > width - margin)
    return any(touches and is_open for touches, is_open in zip(near, tile.open_sides))
