"""Join the panoptic maps of tiles to one map of the image.

1. Two things of neighboring tiles are one if they match in the common part of the tiles: same class, IoU > 0.5.
2. A pixel belongs to the tile whose core contains it, with two exceptions. A thing that reaches into the core of its
   tile and is not cut by it is drawn completely, over stuff and cut things of the neighbor. Where the tile is void, a
   segment of a neighbor fills the pixel.
3. Things of the whole image longer than a tile are drawn, unless the tiles have other segments in most of them.
4. Other segments of the whole image fill the pixels that the tiles left void.

A node is a segment of one tile; nodes of one object have one root. A stuff class has one node.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from ..configuration.labels import VOID
from .tiles import Tile, common_span, root_of, source_indices, within_span

_BLOCK = 256  # rows of the image that are processed in one step
_FILLS, _CUT, _BEYOND, _UNCUT = 1, 2, 3, 4
"""Ranks of drawn pixels: outside the core; stuff or a cut thing in it; an uncut thing outside the core, and in it.
Void pixels have rank 0."""


@dataclass
class _Nodes:
    """Segments of all tiles, joined to objects."""

    labels: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    parent: list[int] = field(default_factory=list)
    stuff: dict[int, int] = field(default_factory=dict)  # label → its node

    def add(self, segment: dict) -> int:
        """The node of a segment: a new one, or the node of its stuff class."""
        label, score = segment["label_id"], segment.get("score", 1.0)
        if label in self.stuff:
            node = self.stuff[label]
            self.scores[node] = max(score, self.scores[node])
            return node
        node = len(self.labels)
        self.labels.append(label)
        self.scores.append(score)
        self.parent.append(node)
        if segment.get("was_fused"):
            self.stuff[label] = node
        return node

    def join(self, a: int, b: int) -> None:
        a, b = sorted((root_of(self.parent, a), root_of(self.parent, b)))
        self.parent[b] = a
        self.scores[a] = max(self.scores[a], self.scores[b])

    def roots(self) -> np.ndarray:
        """Root of each node; the last entry is void, the root of index −1."""
        return np.array([*(root_of(self.parent, node) for node in range(len(self.parent))), VOID], np.int32)


@dataclass
class _Drawn:
    """A tile that a later one may overlap."""

    tile: Tile
    found: np.ndarray  # (h, w) nodes
    uncut: set[int]  # things that no side of the tile cuts


@dataclass
class _Whole:
    """The prediction for the whole image. Its map is scaled to the image by the indices."""

    ids: np.ndarray  # (h, w) index of a segment, or void
    rows: np.ndarray  # (H,) row of `ids` for each row of the image
    columns: np.ndarray  # (W,)
    segments: list[dict]

    def block(self, rows: slice) -> np.ndarray:
        """The map in these rows of the image."""
        return self.ids[self.rows[rows]][:, self.columns]

    def longest_side(self, k: int) -> float:
        """Longest side of the box of segment k, in pixels of the image."""
        mask = self.ids == k
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if not len(rows):
            return 0.0
        height = (rows[-1] - rows[0] + 1) * len(self.rows) / mask.shape[0]
        width = (columns[-1] - columns[0] + 1) * len(self.columns) / mask.shape[1]
        return max(height, width)


class PanopticJoin:
    """Joins the predictions for the tiles, added row by row, and for the whole image.

    Args:
        size: (H, W) of the image.
        side: side of a tile (pixels).
    """

    def __init__(self, size: tuple[int, int], side: int):
        self.size, self.side = size, side
        self.nodes = _Nodes()
        self.map = np.full(size, VOID, np.int32)  # nodes
        self.rank = np.zeros(size, np.uint8)
        self._recent: list[_Drawn] = []
        self._whole: _Whole | None = None

    def add_whole(self, size: tuple[int, int], prediction: dict) -> None:
        """Add the prediction for the whole image at any size (h, w); its map is scaled to the image."""
        segments = prediction["segments_info"]
        ids = _renumbered(prediction, range(len(segments))).astype(np.int16)
        rows, columns = source_indices(size, self.size)
        self._whole = _Whole(ids, rows, columns, segments)

    def add(self, tile: Tile, prediction: dict) -> None:
        """Add the prediction for a tile: {"segmentation" (h, w), "segments_info"}."""
        segments = prediction["segments_info"]
        own = [self.nodes.add(segment) for segment in segments]
        found = _renumbered(prediction, own)  # [h, w] nodes
        things = {node for node, segment in zip(own, segments) if not segment.get("was_fused")}
        uncut = things - _cut(found, tile)
        self._recent = [other for other in self._recent if other.tile.rows.stop > tile.rows.start]
        settled, replaced = set(), set()
        for other in self._recent:
            for theirs, ours in self._matches(tile, found, things, other):
                self.nodes.join(theirs, ours)
                if theirs in other.uncut:
                    settled.add(ours)
                if ours in uncut:
                    replaced.add(theirs)
        self._draw(tile, found, uncut, settled, replaced)
        self._recent.append(_Drawn(tile, found, uncut))

    def result(self) -> dict:
        """{"segmentation" (H, W) int32, "segments_info"}: ids 0, 1, … in reading order of the tiles, −1 is void."""
        self._resolve()
        if self._whole is not None:
            self._add_from_whole(self._whole)
        areas = np.zeros(len(self.nodes.labels) + 1, np.int64)
        for rows in self._blocks():
            areas += np.bincount(self.map[rows].ravel() + 1, minlength=len(areas))
        kept = np.flatnonzero(areas[1:])
        numbers = np.full(len(areas), VOID, np.int32)  # [-1] stays void
        numbers[kept] = np.arange(len(kept))
        for rows in self._blocks():
            self.map[rows] = numbers[self.map[rows]]
        segments = [
            {
                "id": i,
                "label_id": self.nodes.labels[node],
                "was_fused": self.nodes.labels[node] in self.nodes.stuff,
                "score": self.nodes.scores[node],
            }
            for i, node in enumerate(kept.tolist())
        ]
        return {"segmentation": torch.from_numpy(self.map), "segments_info": segments}

    # --- tiles -------------------------------------------------------------------------------------------------------

    def _matches(self, tile: Tile, found: np.ndarray, things: set[int], other: _Drawn) -> list[tuple[int, int]]:
        """Pairs (node of the other tile, node of this one) of the same thing (rule 1)."""
        rows, columns = common_span(tile.rows, other.tile.rows), common_span(tile.columns, other.tile.columns)
        if rows is None or columns is None:
            return []
        theirs = other.found[within_span(rows, other.tile.rows), within_span(columns, other.tile.columns)].ravel()
        ours = found[within_span(rows, tile.rows), within_span(columns, tile.columns)].ravel()
        area_of_theirs, area_of_ours = _areas(theirs), _areas(ours)
        stuff_and_void = {VOID, *self.nodes.stuff.values()}
        pairs, counts = np.unique(np.stack([theirs, ours]), axis=1, return_counts=True)
        matches = []
        for (a, b), common in zip(pairs.T.tolist(), counts.tolist()):
            if a in stuff_and_void or b not in things or self.nodes.labels[a] != self.nodes.labels[b]:
                continue
            union = area_of_theirs[a] + area_of_ours[b] - common
            if 2 * common > union:
                matches.append((a, b))
        return matches

    def _draw(self, tile: Tile, found: np.ndarray, uncut: set[int], settled: set[int], replaced: set[int]) -> None:
        """Draw a tile (rule 2). settled: things drawn uncut by an earlier tile; replaced: drawn things, uncut here."""
        core = (within_span(tile.core_rows, tile.rows), within_span(tile.core_columns, tile.columns))
        inside = np.zeros(found.shape, bool)
        inside[core] = True
        reaching = uncut.intersection(np.unique(found[core]).tolist())  # others are in the core of a neighbor
        rank = np.where(inside, np.uint8(_CUT), np.uint8(_FILLS))
        rank[np.isin(found, list(uncut)) & inside] = _UNCUT
        rank[np.isin(found, list(reaching - settled)) & ~inside] = _BEYOND
        rank[found == VOID] = 0
        drawn, ranks = self.map[tile.rows, tile.columns], self.rank[tile.rows, tile.columns]  # views
        if replaced:
            forgotten = np.isin(drawn, list(replaced)) & inside
            drawn[forgotten], ranks[forgotten] = VOID, 0
        better = rank > ranks
        drawn[better], ranks[better] = found[better], rank[better]

    # --- the whole image -------------------------------------------------------------------------------------------

    def _blocks(self) -> Iterator[slice]:
        return (slice(top, top + _BLOCK) for top in range(0, self.size[0], _BLOCK))

    def _resolve(self) -> None:
        """Replace the nodes of the map by their roots."""
        roots = self.nodes.roots()
        for rows in self._blocks():
            self.map[rows] = roots[self.map[rows]]

    def _add_from_whole(self, whole: _Whole) -> None:
        """Draw segments of the whole image (rules 3 and 4)."""
        shares, areas = self._shares(whole)
        count = len(whole.segments)
        node_of = np.full(count + 1, VOID, np.int32)  # of each segment; [-1] stays void
        below = np.zeros(count + 1, np.uint8)  # rank of a pixel below which the segment is drawn
        joined = []
        for k, segment in enumerate(whole.segments):
            here, label = shares[k], segment["label_id"]
            total, void = sum(here.values()), here[VOID]
            is_stuff = segment.get("was_fused")
            if is_stuff or whole.longest_side(k) <= self.side:
                if 2 * void > total or (is_stuff and label in self.nodes.stuff):
                    node_of[k], below[k] = self.nodes.add(segment), _FILLS
                continue
            pieces = [
                node
                for node, common in here.items()
                if node != VOID and self.nodes.labels[node] == label and 2 * common >= areas[node]
            ]
            same = sum(here[node] for node in pieces)
            if 2 * (same + void) < total:
                continue  # the tiles have other segments there
            node = self.nodes.add(segment)
            joined += [(piece, node) for piece in pieces]
            # If the tiles have most of it, it only fills the void: their outlines are finer.
            node_of[k], below[k] = node, _FILLS if 2 * same >= total else _BEYOND
        for rows in self._blocks():
            ids = whole.block(rows)
            drawn = self.rank[rows] < below[ids]
            self.map[rows][drawn] = node_of[ids][drawn]
        for piece, node in joined:
            self.nodes.join(piece, node)
        self._resolve()

    def _shares(self, whole: _Whole) -> tuple[list[Counter], Counter]:
        """Pixels {node: count} of the map, −1 for void: in each segment of the whole image, and in all."""
        shares, areas = [Counter() for _ in whole.segments], Counter()
        width = len(self.nodes.labels) + 1
        for rows in self._blocks():
            code = (whole.block(rows).astype(np.int64) + 1) * width + self.map[rows] + 1
            for value, count in _areas(code).items():
                k, node = value // width - 1, value % width - 1
                areas[node] += count
                if k != VOID:
                    shares[k][node] += count
        return shares, areas


def _renumbered(prediction: dict, numbers: Sequence[int]) -> np.ndarray:
    """The (h, w) map of a prediction with the id of each segment replaced by its number; void stays."""
    segments = prediction["segments_info"]
    table = np.full(max((s["id"] for s in segments), default=-1) + 2, VOID, np.int32)
    for segment, number in zip(segments, numbers):
        table[segment["id"]] = number
    return table[np.asarray(prediction["segmentation"])]


def _areas(values: np.ndarray) -> dict[int, int]:
    """{value: number of its pixels}."""
    found, counts = np.unique(values, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist()))


def _cut(found: np.ndarray, tile: Tile) -> set[int]:
    """Nodes that reach an open side of the tile."""
    margin = max(2, max(found.shape) // 128)  # masks can end one cell before the border
    sides = (found[:margin], found[-margin:], found[:, :margin], found[:, -margin:])
    nodes: set[int] = set()
    for side, is_open in zip(sides, tile.open_sides):
        if is_open:
            nodes.update(np.unique(side).tolist())
    return nodes
