"""`LadderForUniversalSegmentation`: steps 0 to 3 from ViT-Adapter + Mask2Former to EoMT (paper, Section 3.2).

B images · P prefix tokens · N patches · D width · H, W pixels
"""

import math
from functools import partial

import torch
from torch import Tensor, nn
from transformers import Mask2FormerConfig
from transformers import initialization as init

from ...configuration.ladder import LadderConfig
from ..heads import MaskPrediction
from ..rope import RotaryTable, rotary_table
from ..universal import UniversalSegmentationModel
from .adapter import DeformableAttention, Injector, SpatialPrior, ViTAdapter
from .mask2former import Mask2FormerHeads
from .pyramid import Pyramid


class LadderForUniversalSegmentation(UniversalSegmentationModel):
    """A ViT, an adapter or a pyramid for its feature maps, and Mask2Former's decoders (paper, Section 3.2).

    Losses, matching, masked attention and its annealing are EoMT's; `config.num_blocks` counts decoder layers.
    """

    config: LadderConfig
    config_class = LadderConfig
    base_model_prefix = "eomt_ladder"

    def __init__(self, config: LadderConfig):
        super().__init__(config)
        if config.step == 0:
            self.adapter = ViTAdapter(config)
            self.layernorm.requires_grad_(False)  # a part of the ViT that is not used: the adapter reads the blocks
        else:
            self.pyramid = Pyramid(config, config.strides)
        self.heads = Mask2FormerHeads(
            _mask2former_config(config),
            config.hidden_size,
            use_pixel_decoder=config.step < 2,
            num_levels=len(config.strides) - 1,
        )
        self.post_init()

    @property
    def class_predictor(self) -> nn.Linear:
        return self.heads.class_predictor

    def set_token_merging(self, *args, **kwargs) -> None:
        raise ValueError(f"token merging is for EoMT; step {self.config.step} of the ladder needs a token per patch")

    def segment(self, pixel_values: Tensor, all_logits: bool, **kwargs) -> tuple[list[MaskPrediction], Tensor]:
        maps, hidden_states = self._feature_maps(pixel_values, **kwargs)

        def visible_cells(block: int, prediction: MaskPrediction, size: tuple[int, int]) -> Tensor | None:
            if all_logits:
                prediction.logits()
            return self.visible_cells(block, prediction, size)

        return self.heads(maps, self.predicts_before, visible_cells), hidden_states

    def _feature_maps(self, pixel_values: Tensor, **kwargs) -> tuple[list[Tensor], Tensor]:
        """Images → maps (B, D, H/stride, W/stride), finest first, and the ViT's tokens (B, P + N, D)."""
        grid = self.patch_grid(pixel_values)
        hidden_states = self.embeddings(pixel_values)  # [B, P + N, D]
        rotary = rotary_table(self.config, grid, hidden_states.device, hidden_states.dtype, self.training)

        if self.config.step == 0:
            length = len(self.layers) // self.config.num_interactions
            parts = [
                partial(_through_blocks, self.layers[first : first + length], rotary=rotary, **kwargs)
                for first in range(0, len(self.layers), length)
            ]
            return self.adapter(pixel_values, hidden_states, parts)

        hidden_states = self.layernorm(_through_blocks(self.layers, hidden_states, rotary, **kwargs))
        patches = hidden_states[:, self.config.num_prefix_tokens :].unflatten(1, grid)  # [B, h, w, D]
        return self.pyramid(patches), hidden_states

    def patch_grid(self, pixel_values: Tensor) -> tuple[int, int]:
        grid = super().patch_grid(pixel_values)
        multiple = self.config.strides[-1]
        if any(16 * side % multiple for side in grid):
            raise ValueError(
                f"pixel_values are {16 * grid[0]} × {16 * grid[1]} pixels; step {self.config.step} has a feature map "
                f"of stride {multiple}, so both sides must be multiples of {multiple}"
            )
        return grid

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """The adapter's modules as in ViT-Adapter, the rest as in EoMT. Mask2Former's modules initialize themselves."""
        if isinstance(module, DeformableAttention):
            _init_deformable_attention(module)
        elif isinstance(module, Injector):
            init.zeros_(module.gamma)
        elif isinstance(module, ViTAdapter):
            init.normal_(module.level_embed)
            _init_convolution(module.up)
        elif isinstance(module, SpatialPrior):
            for part in module.modules():
                if isinstance(part, nn.Conv2d):
                    _init_convolution(part)
        elif isinstance(module, nn.BatchNorm2d):
            init.ones_(module.weight)
            init.zeros_(module.bias)
            init.zeros_(module.running_mean)
            init.ones_(module.running_var)
            init.zeros_(module.num_batches_tracked)
        else:
            super()._init_weights(module)


def _through_blocks(layers: nn.ModuleList, hidden_states: Tensor, rotary: RotaryTable | None, **kwargs) -> Tensor:
    """Tokens (B, P + N, D) through some of the ViT's blocks → (B, P + N, D)."""
    for layer in layers:
        hidden_states = layer(hidden_states, None, rotary, **kwargs)
    return hidden_states


def _init_convolution(module: nn.Conv2d | nn.ConvTranspose2d) -> None:
    fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
    init.normal_(module.weight, std=math.sqrt(2 / fan_out))
    if module.bias is not None:
        init.zeros_(module.bias)


def _init_deformable_attention(module: DeformableAttention) -> None:
    """One direction per head, points at distances 1, 2, …, equal weights."""
    angles = torch.arange(module.num_heads, dtype=torch.float32) * (2 * math.pi / module.num_heads)
    directions = torch.stack([angles.cos(), angles.sin()], dim=-1)  # [A, 2]
    directions = directions / directions.abs().amax(-1, keepdim=True)
    distances = torch.arange(1, module.num_points + 1, dtype=torch.float32)
    offsets = directions[:, None, None] * distances[:, None]  # [A, 1, K, 2]
    init.zeros_(module.sampling_offsets.weight)
    init.copy_(module.sampling_offsets.bias, offsets.expand(-1, module.num_levels, -1, -1).flatten())
    init.zeros_(module.attention_weights.weight)
    init.zeros_(module.attention_weights.bias)
    for projection in (module.value_proj, module.output_proj):
        init.xavier_uniform_(projection.weight)
        init.zeros_(projection.bias)


def _mask2former_config(config: LadderConfig) -> Mask2FormerConfig:
    return Mask2FormerConfig(
        feature_size=config.feature_size,
        mask_feature_size=config.feature_size,
        hidden_dim=config.feature_size,
        encoder_feedforward_dim=config.encoder_feedforward_dim,
        encoder_layers=config.encoder_layers,
        decoder_layers=config.num_blocks + 1,  # transformers counts the prediction before the first layer
        num_attention_heads=config.decoder_attention_heads,
        dim_feedforward=config.dim_feedforward,
        enforce_input_projection=config.step >= 2,
        num_queries=config.num_queries,
        num_labels=config.num_labels,
    )
