"""Join the panoptic maps of tiles to one map of the image.

1. Two things of neighboring tiles are one if they match in the common part of the tiles: same class, IoU > 0.5.
2. A pixel belongs to the tile whose core contains it, with two exceptions. A thing that reaches into the core of its
   tile and is not cut by it is drawn completely, over stuff and cut things of the neighbor. Where the tile is void, a
   segment of a neighbor fills the pixel.
3. Things of the whole image longer than a tile are drawn, unless the tiles have other segments in most of them.
4. Other segments of the whole image fill the pixels that the tiles left void.

A node is a segment of one tile; nodes of one object have one root. A stuff class has one node.
"""

from dataclasses import dataclass, field

import numpy as np
import torch

from ..configuration.labels import VOID
from .tiles import Tile, common_span, root_of, within_span

_BLOCK = 256
"""Rows of the image that are processed in one step."""
_FILLS, _CUT, _BEYOND, _UNCUT = 1, 2, 3, 4
"""Ranks of drawn pixels: outside the core; stuff or a cut thing in it; an uncut thing outside the core, and in it."""


@dataclass
class _Nodes:
    """Segments of all tiles, joined to objects."""

    labels: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    parent: list[int] = field(default_factory=list)
    stuff: dict[int, int] = field(default_factory=dict)  # label → its node

    def add(self, segment: dict) -> int:
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
        self._recent: list[tuple] = []  # (tile, map of nodes, uncut things) that a later tile may overlap
        self._whole = None

    def add_whole(self, size: tuple[int, int], prediction: dict) -> None:
        """Add the prediction for the whole image at any size (h, w); its map is scaled to the image."""
        segments = prediction["segments_info"]
        ids = _renumbered(prediction, range(len(segments))).astype(np.int16)
        rows, columns = (np.arange(out) * length // out for out, length in zip(self.size, size))
        self._whole = (ids, rows, columns, segments)

    def add(self, tile: Tile, prediction: dict) -> None:
        """Add the prediction for a tile: {"segmentation" (h, w), "segments_info"}."""
        segments = prediction["segments_info"]
        own = [self.nodes.add(segment) for segment in segments]
        found = _renumbered(prediction, own)  # [h, w] nodes
        things = {node for node, segment in zip(own, segments) if not segment.get("was_fused")}
        uncut = things - _cut(found, tile)
        self._recent = [other for other in self._recent if other[0].rows.stop > tile.rows.start]
        pairs = [pair for other in self._recent for pair in self._matches(tile, found, things, other)]
        for theirs, ours in pairs:
            self.nodes.join(theirs, ours)
        known = {node for _, _, others in self._recent for node in others}
        settled = {ours for theirs, ours in pairs if theirs in known}
        replaced = {theirs for theirs, ours in pairs if ours in uncut}
        self._draw(tile, found, uncut, settled, replaced)
        self._recent.append((tile, found, uncut))

    def result(self) -> dict:
        """{"segmentation" (H, W) int32, "segments_info"}: ids 0, 1, … in reading order of the tiles, −1 is void."""
        self._resolve()
        if self._whole is not None:
            self._add_from_whole()
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

    def _matches(self, tile: Tile, found: np.ndarray, things: set[int], other) -> list[tuple[int, int]]:
        """Pairs (node of the other tile, node of this one) of one thing (rule 1)."""
        theirs, map_of_theirs, _ = other
        rows, columns = common_span(tile.rows, theirs.rows), common_span(tile.columns, theirs.columns)
        if rows is None or columns is None:
            return []
        a = map_of_theirs[within_span(rows, theirs.rows), within_span(columns, theirs.columns)].ravel()
        b = found[within_span(rows, tile.rows), within_span(columns, tile.columns)].ravel()
        area_a, area_b = (dict(zip(*map(np.ndarray.tolist, np.unique(x, return_counts=True)))) for x in (a, b))
        pairs, counts = np.unique(np.stack([a, b]), axis=1, return_counts=True)
        labels = self.nodes.labels
        return [
            (m, n)
            for (m, n), common in zip(pairs.T.tolist(), counts.tolist())
            if n in things
            and m != VOID
            and labels[m] == labels[n]
            and m not in self.nodes.stuff.values()
            and 2 * common > area_a[m] + area_b[n] - common
        ]

    def _draw(self, tile: Tile, found: np.ndarray, uncut: set[int], settled: set[int], replaced: set[int]) -> None:
        """Draw a tile. settled: things drawn uncut by an earlier tile; replaced: drawn things, uncut in this tile."""
        inside = np.zeros(found.shape, bool)
        core = (within_span(tile.core_rows, tile.rows), within_span(tile.core_columns, tile.columns))
        inside[core] = True
        rank = np.where(inside, np.uint8(_CUT), np.uint8(_FILLS))
        rank[np.isin(found, list(uncut)) & inside] = _UNCUT
        reaching = uncut.intersection(np.unique(found[core]).tolist())  # others are in the core of a neighbor
        rank[np.isin(found, list(reaching - settled)) & ~inside] = _BEYOND
        rank[found == VOID] = 0
        drawn, ranks = self.map[tile.rows, tile.columns], self.rank[tile.rows, tile.columns]
        if replaced:
            forgotten = np.isin(drawn, list(replaced)) & inside
            drawn[forgotten], ranks[forgotten] = VOID, 0
        better = rank > ranks
        drawn[better], ranks[better] = found[better], rank[better]

    # --- the whole image -------------------------------------------------------------------------------------------

    def _blocks(self):
        return (slice(top, top + _BLOCK) for top in range(0, self.size[0], _BLOCK))

    def _resolve(self) -> None:
        roots = self.nodes.roots()
        for rows in self._blocks():
            self.map[rows] = roots[self.map[rows]]

    def _whole_block(self, rows: slice) -> np.ndarray:
        ids, index, columns, _ = self._whole
        return ids[index[rows]][:, columns]

    def _add_from_whole(self) -> None:
        segments = self._whole[3]
        if not segments:
            return
        shares = self._shares()
        over, joined = {}, []  # over: {segment: (its node, the rank below which it is drawn)}
        areas: dict[int, int] = {}
        for (_, node), count in shares.items():
            areas[node] = areas.get(node, 0) + count
        for k, segment in enumerate(segments):
            here = {node: count for (w, node), count in shares.items() if w == k}
            total = sum(here.values())
            void = here.get(VOID, 0)
            if segment.get("was_fused"):
                if segment["label_id"] in self.nodes.stuff or 2 * void > total:
                    over[k] = (self.nodes.add(segment), 1)
                continue
            if not self._longer_than_a_tile(k):
                if 2 * void > total:
                    over[k] = (self.nodes.add(segment), 1)
                continue
            pieces = [
                node
                for node, count in here.items()
                if node != VOID and self.nodes.labels[node] == segment["label_id"] and 2 * count >= areas[node]
            ]
            same = sum(here[node] for node in pieces)
            if 2 * (same + void) < total:
                continue  # the tiles have other segments there
            node = self.nodes.add(segment)
            joined += [(piece, node) for piece in pieces]
            over[k] = (node, 1 if 2 * same >= total else _BEYOND)  # else: also over stuff and cut things
        self._paint(over)
        for piece, node in joined:
            self.nodes.join(piece, node)
        self._resolve()

    def _shares(self) -> dict[tuple[int, int], int]:
        """{(segment of the whole image or −1, node or −1): number of common pixels}."""
        shares: dict[tuple[int, int], int] = {}
        width = len(self.nodes.labels) + 1
        for rows in self._blocks():
            code = (self._whole_block(rows).astype(np.int64) + 1) * width + self.map[rows] + 1
            for value, count in zip(*map(np.ndarray.tolist, np.unique(code, return_counts=True))):
                key = (value // width - 1, value % width - 1)
                shares[key] = shares.get(key, 0) + count
        return shares

    def _longer_than_a_tile(self, k: int) -> bool:
        ids, rows, columns, _ = self._whole
        mask = ids == k
        lengths = []
        for axis, out in ((1, len(rows)), (0, len(columns))):
            used = np.flatnonzero(mask.any(axis))
            lengths.append((used[-1] - used[0] + 1) * out / mask.shape[1 - axis] if len(used) else 0)
        return max(lengths) > self.side

    def _paint(self, over: dict[int, tuple[int, int]]) -> None:
        count = len(self._whole[3])
        node_of, below = np.full(count + 1, VOID, np.int32), np.zeros(count + 1, np.uint8)
        for k, (node, rank) in over.items():
            node_of[k], below[k] = node, rank
        for rows in self._blocks():
            whole = self._whole_block(rows)
            take = self.rank[rows] < below[whole]
            self.map[rows][take] = node_of[whole][take]


def _renumbered(prediction: dict, numbers) -> np.ndarray:
    """The (h, w) map of a prediction with the id of each segment replaced by its number; void stays."""
    segments = prediction["segments_info"]
    table = np.full(max((s["id"] for s in segments), default=-1) + 2, VOID, np.int32)
    for segment, number in zip(segments, numbers):
        table[segment["id"]] = number
    return table[np.asarray(prediction["segmentation"])]


def _cut(found: np.ndarray, tile: Tile) -> set[int]:
    """Nodes that reach an open side of the tile."""
    margin = max(2, max(found.shape) // 128)  # masks can end one cell before the border
    sides = (found[:margin], found[-margin:], found[:, :margin], found[:, -margin:])
    nodes: set[int] = set()
    for side, is_open in zip(sides, tile.open_sides):
        if is_open:
            nodes |= set(np.unique(side).tolist())
    return nodes
