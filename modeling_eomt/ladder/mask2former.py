"""Mask2Former's two decoders on a ViT's feature maps: transformers' modules, with annealed masked attention.

B images · Q queries · C labels · D width of the ViT · E width of the decoders (256) · A heads of the decoders
H, W cells of the finest map (stride 4)
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerPixelDecoder,
    Mask2FormerPreTrainedModel,
    Mask2FormerSinePositionEmbedding,
    Mask2FormerTransformerModule,
)

from ..heads import MaskPrediction

VisibleCells = Callable[[int, MaskPrediction, tuple[int, int]], Tensor | None]
"""Layer, prediction before it, size of its feature map → the cells that each query sees (B, Q, cells), or None: all."""


class SharedPositions(Mask2FormerSinePositionEmbedding):
    """Positions (1, E, h, w) for any batch. transformers caches them by shape, which would fix the batch size of an
    exported program."""

    def forward(self, shape: torch.Size, *args, **kwargs) -> Tensor:
        return super().forward((1, *shape[1:]), *args, **kwargs)


class Mask2FormerHeads(Mask2FormerPreTrainedModel):
    """Feature maps, finest first → a prediction before each decoder layer and one after the last.

    A model of its own, so that transformers initializes its modules as in Mask2Former.

    Args:
        config: widths, layers, queries and labels of the two decoders.
        width: D, the width of the feature maps.
        use_pixel_decoder: True in steps 0 and 1; from step 2 on, each map has a 1×1 projection instead.
        num_levels: number of maps that the decoder's layers read in turn, coarsest first: 3, or 1 in step 3.
    """

    def __init__(self, config: Mask2FormerConfig, width: int, use_pixel_decoder: bool, num_levels: int):
        super().__init__(config)
        if use_pixel_decoder:
            self.pixel_decoder = Mask2FormerPixelDecoder(config, feature_channels=[width] * 4)
            # transformers' constructor ignores torch.device("meta")
            self.pixel_decoder.level_embed = nn.Parameter(torch.zeros(3, config.feature_size))
            self.pixel_decoder.position_embedding = SharedPositions(config.feature_size // 2, normalize=True)
        else:
            self.pixel_decoder = None
            self.mask_projection = nn.Conv2d(width, config.mask_feature_size, kernel_size=1)
        module = Mask2FormerTransformerModule(config.feature_size if use_pixel_decoder else width, config)
        module.position_embedder = SharedPositions(config.hidden_dim // 2, normalize=True)
        module.input_projections = nn.ModuleList(module.input_projections[:num_levels])  # a plain list until 5.17
        if num_levels != module.num_feature_levels:
            module.num_feature_levels = num_levels
            module.level_embed = nn.Embedding(num_levels, config.hidden_dim)
        self.transformer_module = module
        self.class_predictor = nn.Linear(config.hidden_dim, config.num_labels + 1)

    def forward(
        self, maps: list[Tensor], predicts_before: Callable[[int], bool], visible_cells: VisibleCells
    ) -> list[MaskPrediction]:
        """Maps (B, D, h, w), finest first → the predictions before the layers of `predicts_before`, then the last."""
        levels, mask_features = self._pixels(maps)
        module, decoder = self.transformer_module, self.transformer_module.decoder
        features, positions = [], []
        for index, level in enumerate(levels):
            position = module.position_embedder(level.shape, level.device, level.dtype, None)
            projected = module.input_projections[index](level).flatten(2)
            projected = projected + module.level_embed.weight[index][None, :, None]
            features.append(projected.permute(2, 0, 1))  # [cells, B, E]
            positions.append(position.flatten(2).permute(2, 0, 1))
        batch = mask_features.shape[0]  # len() would fix it in an exported program
        hidden_states = module.queries_features.weight[:, None].repeat(1, batch, 1)  # [Q, B, E]
        query_positions = module.queries_embedder.weight[:, None].repeat(1, batch, 1)

        predictions = []
        for index, layer in enumerate(decoder.layers):
            level = index % len(levels)
            mask = None
            if predicts_before(index):
                predictions.append(self._predict(hidden_states, mask_features))
                visible = visible_cells(index, predictions[-1], tuple(levels[level].shape[-2:]))
                mask = None if visible is None else self._attention_mask(visible)
            hidden_states = layer(
                hidden_states,
                0,
                None,
                positions[level][None],  # tensors: reentrant checkpointing does not look into lists
                query_positions,
                features[level][None],
                encoder_attention_mask=mask,
            )[0]
        return [*predictions, self._predict(hidden_states, mask_features)]

    def _pixels(self, maps: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Maps → the decoder's levels, coarsest first, and mask features (B, H, W, E)."""
        if self.pixel_decoder is None:
            finest, *others = maps
            return others[::-1], self.mask_projection(finest).permute(0, 2, 3, 1)
        decoded = self.pixel_decoder(maps, output_hidden_states=False, output_attentions=False)
        return list(decoded.multi_scale_features), decoded.mask_features.permute(0, 2, 3, 1)

    def _predict(self, hidden_states: Tensor, mask_features: Tensor) -> MaskPrediction:
        decoder = self.transformer_module.decoder
        queries = decoder.layernorm(hidden_states).transpose(0, 1)  # [B, Q, E]
        embeddings = decoder.mask_predictor.mask_embedder(queries)
        return MaskPrediction(self.class_predictor(queries), embeddings, mask_features)

    def _attention_mask(self, visible: Tensor) -> Tensor:
        """Visible cells (B, Q, cells) → hidden cells (B · A, Q, cells). A query that would see nothing sees all."""
        hidden = ~(visible | ~visible.any(-1, keepdim=True))
        return hidden.repeat_interleave(self.config.num_attention_heads, dim=0)
