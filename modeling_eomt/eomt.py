"""`EoMTForUniversalSegmentation`: a plain ViT that segments (paper, Section 3).

B images · Q queries · P prefix tokens · N patches · T tokens, fewer where they are merged · D width
L2 = config.num_blocks
"""

import torch
from torch import Tensor, nn

from ..configuration import EoMTConfig
from .heads import MaskPrediction, Queries, Upscaler, mask_head
from .masking import query_attention_mask
from .rope import RotaryTable, rotary_table
from .token_merging import MergedTokens, TokenMerging
from .universal import UniversalSegmentationModel


class EoMTForUniversalSegmentation(TokenMerging, UniversalSegmentationModel):
    """EoMT for panoptic, instance and semantic segmentation.

    After the first L1 blocks the learned queries join the patch tokens; the last L2 blocks process all jointly; the
    mask module turns queries into classes and masks. Where masking is on, each of the last L2 blocks is preceded by
    an intermediate prediction whose masks restrict where the queries look.
    """

    def __init__(self, config: EoMTConfig):
        super().__init__(config)
        config = self.config
        self.query = Queries(config.num_queries, config.hidden_size)
        self.upscale_block = Upscaler(config)
        self.mask_head = mask_head(config)
        self.class_predictor = nn.Linear(config.hidden_size, config.num_labels + 1)
        self.post_init()

    @property
    def joint_layers(self) -> nn.ModuleList:
        """The L2 blocks that process queries and patches jointly."""
        return self.layers[-self.config.num_blocks :]

    @property
    def final_norm(self) -> nn.LayerNorm:
        """The norm before every prediction."""
        return self.layernorm

    def segment(self, pixel_values: Tensor, all_logits: bool, **kwargs) -> tuple[list[MaskPrediction], Tensor]:
        grid = self.patch_grid(pixel_values)
        hidden_states, rotary, merged = self.encode(pixel_values, grid, **kwargs)
        queries = self.query(hidden_states.shape[0]).to(hidden_states)  # [B, Q, D]
        hidden_states = torch.cat([queries, hidden_states], dim=1)  # [B, T, D]
        if rotary is not None:
            rotary = rotary.with_prefix(self.config.num_queries)
        predictions = []
        for block, layer in enumerate(self.joint_layers):
            query_mask = None
            if self.predicts_before(block):
                prediction = self.predict(self._on_grid(self.final_norm(hidden_states), merged), grid)
                predictions.append(prediction)
                if all_logits:
                    prediction.logits()
                visible = self.visible_cells(block, prediction, grid)
                if merged is not None:
                    visible = merged.visible(visible)
                query_mask = query_attention_mask(visible, self.config.num_prefix_tokens)
            hidden_states = layer(hidden_states, query_mask, rotary, **kwargs)
        hidden_states = self._on_grid(self.final_norm(hidden_states), merged)
        predictions.append(self.predict(hidden_states, grid))
        return predictions, hidden_states

    def predict(self, normalized: Tensor, grid: tuple[int, int]) -> MaskPrediction:
        """Normalized tokens (B, T, D) → classes and masks (paper, Section 3.1)."""
        sizes = [self.config.num_queries, self.config.num_prefix_tokens, grid[0] * grid[1]]
        queries, _, patches = normalized.split(sizes, dim=1)  # [B, Q, D], [B, P, D], [B, N, D]
        mask_features = self.upscale_block(patches.unflatten(1, grid))  # [B, H, W, D]
        device = mask_features.device  # the heads may lie on several
        class_logits, mask_embeddings = self.class_predictor(queries).to(device), self.mask_head(queries).to(device)
        return MaskPrediction(class_logits, mask_embeddings, mask_features)

    def encode(
        self, pixel_values: Tensor, grid: tuple[int, int], **kwargs
    ) -> tuple[Tensor, RotaryTable | None, MergedTokens | None]:
        """The first L1 blocks, without queries: images → tokens (B, P + N, D), the rotary table of their positions,
        and which tokens were merged, where merging is on."""
        hidden_states = self.embeddings(pixel_values)  # [B, P + N, D]
        table = rotary_table(self.config, grid, hidden_states.device, hidden_states.dtype, self.training)
        rotary, merged = table, None
        if self.token_merging and not self.training:
            merged = MergedTokens(self.token_merging, grid, self.config.num_prefix_tokens, hidden_states.shape[0])
        for number, layer in enumerate(self.layers[: -self.config.num_blocks], start=1):
            merge = None if merged is None else merged.merging_at(number)
            hidden_states = layer(hidden_states, None, rotary, merge, **kwargs)
            if merge is not None:
                rotary = merged.rotary(table)
        return hidden_states, rotary, merged

    def _on_grid(self, hidden_states: Tensor, merged: MergedTokens | None) -> Tensor:
        """(B, T, D) → (B, Q + P + N, D): merged tokens at each of their patches (paper, Section 4.3)."""
        if merged is None:
            return hidden_states
        first = self.config.num_queries + self.config.num_prefix_tokens
        return torch.cat([hidden_states[:, :first], merged.restore(hidden_states[:, first:])], dim=1)
