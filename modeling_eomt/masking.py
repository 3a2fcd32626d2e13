"""Masked attention and its annealing (paper, Sections 3.2 and 3.3).

B images · Q queries · P prefix tokens · N patches = h · w, patches down, across
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MaskSchedule:
    """Part of a model: the probability of masked attention in each of the last blocks.

    The probabilities are a buffer, `attn_mask_probs`, as in the authors' checkpoints. A copy on the host says which
    blocks are masked at all, which saves a device synchronization in forward. It holds no probability, so a compiled
    model is recompiled only when the annealing of a block ends.

    Training follows the probabilities. Inference follows `config.masked_inference` until somebody sets probabilities on
    this object: those in a checkpoint are the state of its training (Table 7: inference with masks after annealing, or
    without them after training with masks to the end, costs up to 29 PQ).
    """

    def init_mask_schedule(self, num_blocks: int) -> None:
        self._infers_by_schedule = self.config.masked_inference
        self.register_buffer("attn_mask_probs", torch.ones(num_blocks, dtype=torch.float32))
        self.register_load_state_dict_post_hook(_read_after_loading)
        self._masked_blocks = (True,) * num_blocks
        self._mask_probs_version = self._current_version()

    def set_attn_mask_probs(self, probabilities) -> None:
        """Set the probability that a query's attention is masked, for training and inference. Annealing does each step.

        All zero turns masking off: inference is then a plain ViT. In-place writes to the buffer work, too, but a write
        through `attn_mask_probs.data` is not visible to the host and has no defined effect.

        Args:
            probabilities: one number in [0, 1] for each of the masked blocks, earliest first.

        Raises:
            ValueError: for another number of probabilities, or one outside [0, 1].
        """
        values = [float(probability) for probability in probabilities]
        if len(values) != len(self._masked_blocks) or not all(0 <= value <= 1 for value in values):
            raise ValueError(f"attn_mask_probs are {values}; give {len(self._masked_blocks)} numbers in [0, 1]")
        with torch.no_grad():
            self.attn_mask_probs.copy_(torch.tensor(values), non_blocking=self.attn_mask_probs.is_cuda)
        self._infers_by_schedule = True
        self._masked_blocks = tuple(value > 0 for value in values)
        self._mask_probs_version = self._current_version()

    @property
    def infers_with_masks(self) -> bool:
        """Whether the attention of some block is masked outside training."""
        self.refresh_masked_blocks()
        return self.config.masked_attention and self._infers_by_schedule and any(self._masked_blocks)

    @contextmanager
    def inference_masking(self, masked: bool | None = None) -> Iterator[None]:
        """Context manager: inference with masks in all blocks or in none; by default `config.masked_inference`.

        Raises:
            ValueError: for masks without `config.masked_attention`.
        """
        probabilities, infers_by_schedule = self.attn_mask_probs.tolist(), self._infers_by_schedule
        masked = self.config.masked_inference if masked is None else masked
        if masked and not self.config.masked_attention:
            raise ValueError("a model with masked_attention=False, trained without masks, cannot infer with them")
        self.set_attn_mask_probs([float(masked)] * len(self._masked_blocks))
        try:
            yield
        finally:
            self.set_attn_mask_probs(probabilities)
            self._infers_by_schedule = infers_by_schedule

    def predicts_before(self, block: int) -> bool:
        """Whether a prediction precedes this block: in training with masked attention for its loss, else for a mask."""
        return self.config.masked_attention and (self.training or self._masks(block))

    def _masks(self, block: int) -> bool:
        return self._masked_blocks[block] and (self.training or self._infers_by_schedule)

    @torch.no_grad()
    def visible_cells(self, block: int, prediction, grid: tuple[int, int]) -> Tensor | None:
        """Cells of a (h, w) feature map that each query sees in this block: (B, Q, h·w) bool, or None for all.

        A query sees the inside of its predicted mask. Each query of each image keeps its mask with the block's
        probability. Without its mask it sees all cells.
        """
        if not self._masks(block):
            return None
        visible = prediction.logits_on(grid).flatten(2) > 0  # [B, Q, N]
        kept_share = self.attn_mask_probs[block].to(visible.device)
        dropped = torch.rand(*visible.shape[:2], device=visible.device) > kept_share  # [B, Q]
        return visible | dropped[..., None]

    def refresh_masked_blocks(self) -> None:
        """Update the host's copy after a write to the buffer."""
        if not torch.compiler.is_compiling() and self._mask_probs_version != self._current_version():
            self._infers_by_schedule = True
            self.read_attn_mask_probs()

    def read_attn_mask_probs(self) -> None:
        """Update the host's copy after the buffer was loaded or moved."""
        if not self.attn_mask_probs.is_meta:
            self._masked_blocks = tuple(bool(value > 0) for value in self.attn_mask_probs.cpu())
            self._mask_probs_version = self._current_version()

    def _current_version(self) -> tuple[int, int]:
        buffer = self.attn_mask_probs
        return id(buffer), 0 if buffer.is_inference() else buffer._version

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        self.read_attn_mask_probs()
        return self


def query_attention_mask(visible: Tensor | None, num_prefix: int) -> Tensor | None:
    """Visible patches (B, Q, N) → visible tokens (B, 1, Q, Q + P + N) for all heads.

    All queries and prefix tokens are visible, so no row is empty.
    """
    if visible is None:
        return None
    return F.pad(visible, (visible.shape[1] + num_prefix, 0), value=True)[:, None]


def _read_after_loading(model: nn.Module, incompatible_keys) -> None:
    """Hook of `load_state_dict`. A function of the module, because hooks are pickled with the model."""
    model.read_attn_mask_probs()
