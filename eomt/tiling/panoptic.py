"""Panoptic maps of tiles → one map of the image.

    a thing of two neighbors is one if its masks match where both tiles look: same class, IoU > 0.5 there
    a pixel belongs to the tile in whose core it lies, except that
        a thing in the core that its tile sees uncut is drawn whole, over stuff and cut things of the neighbor
        where that tile has nothing, a neighbor's segment is taken
    of the whole image come things longer than a tile, unless the tiles see something else in most of them, and what
    the tiles left empty

A node is a segment of one tile; nodes that are one object have one root. A stuff class has one node.
"""

from dataclasses import dataclass, field

import numpy as np
import torch

from ..configuration.labels import VOID
from .tiles import Tile, common_span, within_span

_BLOCK = 256
"""Rows of the image that are looked at at once."""
_FILLS, _CUT, _BEYOND, _UNCUT = 1, 2, 3, 4
"""Ranks of what is drawn: outside the core; stuff or a cut thing in it; an uncut thing outside the core, and in it."""


@dataclass
class _Nodes:
    """Segments of all tiles, and which are one object."""

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

    def root(self, node: int) -> int:
        while self.parent[node] != node:
            self.parent[node] = node = self.parent[self.parent[node]]
        return node

    def join(self, a: int, b: int) -> None:
        a, b = sorted((self.root(a), self.root(b)))
        self.parent[b] = a
        self.scores[a] = max(self.scores[a], self.scores[b])

    def roots(self) -> np.ndarray:
        """Root of each node; the last entry keeps void."""
        return np.array([*(self.root(node) for node in range(len(self.parent))), VOID], np.int32)


class PanopticJoin:
    """Takes the tiles' predictions row by row, and the whole image's, and gives the image's.

    Args:
        size: (H, W) of the image.
        side: of a tile, pixels.
    """

    def __init__(self, size: tuple[int, int], side: int):
        self.size, self.side = size, side
        self.nodes = _Nodes()
        self.map = np.full(size, VOID, np.int32)  # nodes
        self.rank = np.zeros(size, np.uint8)
        self._recent: list[tuple] = []  # (tile, map of nodes, uncut things) that a later tile may overlap
        self._whole = None

    def add_whole(self, size: tuple[int, int], prediction: dict) -> None:
        """The whole image's prediction, of any size: its (h, w) map is stretched over the image."""
        segments = prediction["segments_info"]
        ids = _renumbered(prediction, range(len(segments))).astype(np.int16)
        rows, columns = (np.arange(out) * length // out for out, length in zip(self.size, size))
        self._whole = (ids, rows, columns, segments)

    def add(self, tile: Tile, prediction: dict) -> None:
        """A tile's prediction: {"segmentation" (h, w), "segments_info"}."""
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
        """(node of the other tile, node of this one) that are one thing."""
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
        """`settled`: things that an earlier tile drew uncut; `replaced`: drawn things that this tile sees uncut."""
        inside = np.zeros(found.shape, bool)
        core = (within_span(tile.core_rows, tile.rows), within_span(tile.core_columns, tile.columns))
        inside[core] = True
        rank = np.where(inside, np.uint8(_CUT), np.uint8(_FILLS))
        rank[np.isin(found, list(uncut)) & inside] = _UNCUT
        reaching = uncut.intersection(
            np.unique(found[core]).tolist()
        )  # what lies beside the core a neighbor sees better
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
        over, joined = {}, []  # segment → (its node, the rank it is drawn over)
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
                continue  # the tiles see something else there
            node = self.nodes.add(segment)
            joined += [(piece, node) for piece in pieces]
            over[k] = (node, 1 if 2 * same >= total else _BEYOND)  # else: also over stuff and cut things
        self._paint(over)
        for piece, node in joined:
            self.nodes.join(piece, node)
        self._resolve()

    def _shares(self) -> dict[tuple[int, int], int]:
        """(segment of the whole image or −1, node or −1) → pixels that are both."""
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
    """A prediction's (h, w) map with each segment's id replaced by its number; void stays."""
    segments = prediction["segments_info"]
    table = np.full(max((s["id"] for s in segments), default=-1) + 2, VOID, np.int32)
    for segment, number in zip(segments, numbers):
        table[segment["id"]] = number
    return table[np.asarray(prediction["segmentation"])]


def _cut(found: np.ndarray, tile: Tile) -> set[int]:
    """Nodes that reach a side of the tile where the image continues."""
    margin = max(2, max(found.shape) // 128)  # masks end a cell before the border at times
    sides = (found[:margin], found[-margin:], found[:, :margin], found[:, -margin:])
    nodes: set[int] = set()
    for side, is_open in zip(sides, tile.open_sides):
        if is_open:
            nodes |= set(np.unique(side).tolist())
    return nodes
