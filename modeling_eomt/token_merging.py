"""ALGM token merging at inference (Norouzi et al., CVPR 2024; the paper's Table 9): similar tokens are averaged.

B images · P prefix tokens · N patches · M tokens after the prefix, at most N · D width · E head width · Q queries
W windows of 2 × 2 patches

    layer 1   local: windows of four similar tokens become one token each
    layer 7   global: a token at an even position joins the most similar one at an odd position, if similar enough

Both happen inside the block, after attention and before the MLP. Every image of a batch loses the same number of
tokens: the smallest number that one of its images would lose alone. Prefix tokens never merge. The patch grid is
restored before the mask module.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .rope import RotaryTable

WINDOW = 2


class TokenMerging:
    """Part of a model: the settings of token merging. They are not saved."""

    token_merging: tuple[tuple[int, int], float] | None = None

    def set_token_merging(self, layers: Sequence[int] = (1, 7), threshold: float | None = None) -> None:
        """Merge tokens at inference, never in training.

        Args:
            layers: blocks, counted from 1, of the local and the global stage. Both come before the blocks with queries.
                ALGM has (1, 7) for models of 24 blocks, (1, 5) for 12.
            threshold: least mean cosine similarity of a window that becomes one token; ALGM has 0.88 to 0.955. The
                global stage computes its own. None, or a number above 1: no merging.

        Raises:
            ValueError: for layers that the model does not have before its queries, or a threshold that is not a number.
        """
        if threshold is None:
            self.token_merging = None
            return
        last = self.config.num_hidden_layers - self.config.num_blocks  # before the queries join
        layers = tuple(layers)
        two_numbers = len(layers) == 2 and all(isinstance(layer, int) for layer in layers)
        if not two_numbers or not 1 <= layers[0] < layers[1] <= last:
            raise ValueError(
                f"token merging in layers {list(layers)}: give two of 1 … {last}, ascending; the queries join after "
                f"layer {last}"
            )
        if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not math.isfinite(threshold):
            raise ValueError(f"the threshold of token merging is {threshold!r}; give a cosine similarity, such as 0.9")
        self.token_merging = (layers, float(threshold)) if threshold <= 1 else None


class MergedTokens:
    """State of one batch in the blocks: which token holds which patch.

    `place` (B, N): index of each patch's token after the prefix; None before the first merge.
    """

    def __init__(self, settings: tuple[tuple[int, int], float], grid: tuple[int, int], num_prefix: int, batch: int):
        (self.local_layer, self.global_layer), self.threshold = settings
        self.grid, self.num_prefix = grid, num_prefix
        self.count = grid[0] * grid[1]  # M
        self.batch = batch
        self.place: Tensor | None = None

    def merging_at(self, layer: int) -> Callable[[Tensor], Tensor] | None:
        """The merge of a block, counted from 1, between attention and MLP: (B, P + M, D) → fewer tokens; else None."""
        return {self.local_layer: self._merge_windows, self.global_layer: self._merge_pairs}.get(layer)

    def _merge_windows(self, hidden_states: Tensor) -> Tensor:
        targets, count = local_targets(hidden_states[:, self.num_prefix :], self.grid, self.threshold)
        return self._merge(hidden_states, targets, count)

    def _merge_pairs(self, hidden_states: Tensor) -> Tensor:
        first_is_even = self.num_prefix % 2 == 0  # positions are counted with the prefix
        patches = hidden_states[:, self.num_prefix :]
        return self._merge(hidden_states, *global_targets(patches, first_is_even, self.global_layer))

    def _merge(self, hidden_states: Tensor, targets: Tensor, count: int) -> Tensor:
        """Average the tokens with the same target, weighted by their numbers of patches."""
        prefix, tokens = hidden_states[:, : self.num_prefix], hidden_states[:, self.num_prefix :]
        if self.place is None:
            self.place = torch.arange(self.count, device=tokens.device).expand(self.batch, -1)
        self.place = self.place.to(tokens.device)  # layers may be on several devices
        sums = _sums(tokens.float() * self._sizes(), targets, count)
        self.place, self.count = targets.gather(1, self.place), count
        return torch.cat([prefix, (sums / self._sizes()).to(tokens.dtype)], dim=1)

    def _sizes(self) -> Tensor:
        """Number of patches of each token: (B, M, 1) fp32."""
        ones = torch.ones(*self.place.shape, 1, device=self.place.device)
        return _sums(ones, self.place, self.count)

    def rotary(self, table: RotaryTable | None) -> RotaryTable | None:
        """Rotary table of the patch grid → of the merged tokens. The position of a token is the mean of its patches'.

        ALGM has no rotary positions. Angles are linear in the position, so the mean of the angles is exact.
        """
        if table is None or self.place is None:
            return table
        angles = table.angles.to(self.place.device).expand(self.batch, -1, -1)  # [B, N, E]
        angles = _sums(angles, self.place, self.count) / self._sizes()
        return RotaryTable.from_angles(angles, table.cos.dtype, table.interleaved).with_prefix(self.num_prefix)

    def visible(self, cells: Tensor | None) -> Tensor | None:
        """Visible patches (B, Q, N) bool → visible tokens (B, Q, M): those with at least one visible patch."""
        if cells is None or self.place is None:
            return cells
        tokens = torch.zeros(*cells.shape[:2], self.count, dtype=torch.uint8, device=cells.device)
        place = self.place.to(cells.device)[:, None].expand_as(cells)
        return tokens.scatter_reduce_(2, place, cells.to(torch.uint8), "amax").bool()

    def restore(self, tokens: Tensor) -> Tensor:
        """Merged tokens (B, M, D) → the token of every patch (B, N, D)."""
        if self.place is None:
            return tokens
        place = self.place.to(tokens.device)
        return tokens.gather(1, place[..., None].expand(-1, -1, tokens.shape[-1]))


def local_targets(tokens: Tensor, grid: tuple[int, int], threshold: float) -> tuple[Tensor, int]:
    """Patches (B, N, D) → index of each one's token after the local merge (B, N), and the number of tokens.

    The score of a 2 × 2 window is the mean cosine similarity of its 12 ordered pairs. The r best windows come first, by
    falling score, then the other patches in their order. r is the number of windows at or above the threshold, in the
    image with the fewest. An odd last row or column is in no window.
    """
    height, width = (side - side % WINDOW for side in grid)
    device, batch = tokens.device, tokens.shape[0]
    numbers = torch.arange(grid[0] * grid[1], device=device).unflatten(0, grid)[:height, :width]
    windows = numbers.unflatten(1, (-1, WINDOW)).unflatten(0, (-1, WINDOW)).transpose(1, 2).reshape(-1, WINDOW**2)
    members = F.normalize(tokens.float(), dim=-1)[:, windows]  # [B, W, 4, D]
    pairs = WINDOW**2 * (WINDOW**2 - 1)
    scores = (members.sum(2).square().sum(-1) - members.square().sum((2, 3))) / pairs  # [B, W]
    r = int((scores >= threshold).sum(1).min()) if len(windows) else 0
    best = scores.topk(r, dim=1).indices if len(windows) else numbers.new_zeros(batch, 0)  # [B, r]
    merged = windows[best].flatten(1)  # [B, 4 r]
    rank = torch.arange(r, device=device).repeat_interleave(WINDOW**2).expand(batch, -1)
    targets = torch.full((batch, tokens.shape[1]), -1, device=device).scatter(1, merged, rank)
    kept = targets < 0
    return torch.where(kept, r + kept.cumsum(1) - 1, targets), tokens.shape[1] - (WINDOW**2 - 1) * r


def global_targets(tokens: Tensor, first_is_even: bool, layer: int) -> tuple[Tensor, int]:
    """Tokens (B, M, D) → index of each one's token after the global merge (B, M), and the number of tokens.

    Each token at an even position is paired with the most similar one at an odd position. The r best pairs merge. The
    result is the remaining even tokens, then the odd ones, both in their order. r is the number of pairs at or above
    mean + standard deviation / layer of the similarities, in the image with the fewest.
    """
    device, batch = tokens.device, tokens.shape[0]
    positions = torch.arange(tokens.shape[1], device=device)
    even, odd = positions[::2], positions[1::2]
    if not first_is_even:
        even, odd = odd, even
    if len(even) < 2 or not len(odd):
        return positions.expand(batch, -1), tokens.shape[1]
    directions = F.normalize(tokens.float(), dim=-1)
    similarity, partner = (directions[:, even] @ directions[:, odd].transpose(1, 2)).max(-1)  # [B, even]
    least = similarity.mean(1).mean() + similarity.std(1).mean() / layer
    r = int((similarity >= least).sum(1).min())
    merging = torch.zeros_like(similarity, dtype=torch.bool)
    merging.scatter_(1, similarity.argsort(1, descending=True)[:, :r], True)
    left = len(even) - r
    targets = positions.new_zeros(batch, tokens.shape[1])
    targets[:, even] = torch.where(merging, left + partner, (~merging).cumsum(1) - 1)
    targets[:, odd] = left + torch.arange(len(odd), device=device)
    return targets, tokens.shape[1] - r


def _sums(values: Tensor, targets: Tensor, count: int) -> Tensor:
    """Sums of the values (B, M, D) with the same target: (B, count, D)."""
    sums = values.new_zeros(values.shape[0], count, values.shape[2])
    return sums.scatter_add_(1, targets[..., None].expand_as(values), values)
