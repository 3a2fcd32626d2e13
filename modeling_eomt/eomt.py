"""`EoMTForUniversalSegmentation`: a plain ViT that segments (paper, Section 3).

B images · Q queries · P prefix tokens · N patches · T tokens · D width · C labels · L2 = config.num_blocks
"""

import torch
from torch import Tensor, nn
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from ..configuration import EoMTConfig, as_pair
from .criterion import Criterion, check_targets
from .embeddings import Embeddings
from .heads import MaskPrediction, Upscaler, mask_head
from .layers import EoMTLayer
from .masking import query_attention_mask
from .matcher import match
from .outputs import EoMTForUniversalSegmentationOutput, group_by_image, is_grouped
from .pretrained import EoMTPreTrainedModel
from .rope import rotary_table


class EoMTForUniversalSegmentation(EoMTPreTrainedModel):
    """EoMT for panoptic, instance and semantic segmentation.

    After the first L1 blocks the learned queries join the patch tokens; the last L2 blocks process all jointly; the
    mask module turns queries into classes and masks. Where masking is on, each of the last L2 blocks is preceded by
    an intermediate prediction whose masks restrict where the queries look.
    """

    def __init__(self, config: EoMTConfig):
        super().__init__(config)
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(EoMTLayer(config) for _ in range(config.num_hidden_layers))
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.query = nn.Embedding(config.num_queries, config.hidden_size)
        self.upscale_block = Upscaler(config)
        self.mask_head = mask_head(config)
        self.class_predictor = nn.Linear(config.hidden_size, config.num_labels + 1)
        self.criterion = Criterion(config)
        self.register_buffer("attn_mask_probs", torch.ones(config.num_blocks))
        self.register_load_state_dict_post_hook(_read_after_loading)
        self.post_init()
        self._masked_blocks = (True,) * config.num_blocks
        self._mask_probs_version = self._version_of_attn_mask_probs()

    # --- masked attention ------------------------------------------------------------------------------------------

    def set_attn_mask_probs(self, probabilities) -> None:
        """Set with which probability a query's attention is masked in each of the last L2 blocks, earliest first.

        All zero turns masking off: outside training, inference is then a plain ViT. Annealing calls this every step.

        Raises:
            ValueError: when there is not one probability in [0, 1] for each block.
        """
        values = [float(probability) for probability in probabilities]
        if len(values) != self.config.num_blocks or not all(0 <= value <= 1 for value in values):
            raise ValueError(f"attn_mask_probs are {values}; give {self.config.num_blocks} numbers in [0, 1]")
        with torch.no_grad():
            self.attn_mask_probs.copy_(torch.tensor(values))
        self._masked_blocks = tuple(value > 0 for value in values)
        self._mask_probs_version = self._version_of_attn_mask_probs()

    def _version_of_attn_mask_probs(self) -> tuple[int, int]:
        buffer = self.attn_mask_probs
        return id(buffer), 0 if buffer.is_inference() else buffer._version

    def _read_attn_mask_probs(self) -> None:
        """Refresh the host's mirror after the buffer was loaded or moved.

        The mirror, which blocks are masked at all, spares forward a device sync; as it holds no probability, a
        compiled model is compiled anew only when a block's annealing ends.
        """
        if not self.attn_mask_probs.is_meta:
            self._masked_blocks = tuple(value > 0 for value in self.attn_mask_probs.tolist())
            self._mask_probs_version = self._version_of_attn_mask_probs()

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        self._read_attn_mask_probs()
        return self

    # --- forward ---------------------------------------------------------------------------------------------------

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        pixel_values: Tensor,
        mask_labels: list[Tensor] | Tensor | None = None,
        class_labels: list[Tensor] | Tensor | None = None,
        patch_offsets: list | None = None,
        output_auxiliary_logits: bool = True,
        **kwargs,
    ) -> EoMTForUniversalSegmentationOutput:
        """Images → class and mask logits of every query, and the loss where there are labels.

        Args:
            pixel_values: (B, 3, H, W), normalised; H and W any multiples of the patch size.
            mask_labels: list of (n, H, W) bool or float masks, or one (B, n, H, W) tensor.
            class_labels: list of (n,) labels, or one (B, n) tensor.
            patch_offsets: returned as they are, for the stitching of windows.
            output_auxiliary_logits: False leaves the masked blocks' logits out; the losses do not need them.

        Raises:
            ValueError: when an input has a wrong shape or a label is outside the configuration.
        """
        grid = self._patch_grid(pixel_values)
        if not torch.compiler.is_compiling() and self._mask_probs_version != self._version_of_attn_mask_probs():
            self._read_attn_mask_probs()  # the buffer was written to from outside

        hidden_states = self.embeddings(pixel_values)  # [B, P + N, D]
        rotary = rotary_table(self.config, grid, hidden_states.device, hidden_states.dtype, self.training)
        first_joint = self.config.num_hidden_layers - self.config.num_blocks
        for layer in self.layers[:first_joint]:
            hidden_states = layer(hidden_states, None, rotary, **kwargs)

        queries = self.query.weight.to(hidden_states.dtype).expand(hidden_states.shape[0], -1, -1)
        hidden_states = torch.cat([queries, hidden_states], dim=1)  # [B, T, D]
        rotary = rotary and rotary.with_prefix(self.config.num_queries)
        predictions, auxiliary_logits = [], []
        for block, layer in enumerate(self.layers[first_joint:]):
            query_mask = None
            if self._predicts_before(block):
                predictions.append(self.predict(self.layernorm(hidden_states), grid))
                if output_auxiliary_logits:
                    auxiliary_logits.append(predictions[-1].logits())
                query_mask = self._query_mask(block, predictions[-1], grid)
            hidden_states = layer(hidden_states, query_mask, rotary, **kwargs)
        hidden_states = self.layernorm(hidden_states)
        predictions.append(self.predict(hidden_states, grid))

        losses = None
        if mask_labels is not None and class_labels is not None:
            losses = self._losses(predictions, mask_labels, class_labels)
        output = EoMTForUniversalSegmentationOutput(
            loss=sum(losses.values()) if losses else None,
            loss_dict=losses,
            **predictions[-1].logits(),
            auxiliary_logits=auxiliary_logits or None,
            last_hidden_state=hidden_states,
            patch_offsets=patch_offsets,
        )
        return group_by_image(output) if is_grouped(patch_offsets) else output

    def predict(self, normalised: Tensor, grid: tuple[int, int]) -> MaskPrediction:
        """Normalised tokens (B, T, D) → classes and masks (paper, Section 3.1)."""
        sizes = [self.config.num_queries, self.config.num_prefix_tokens, grid[0] * grid[1]]
        queries, _, patches = normalised.split(sizes, dim=1)  # [B, Q, D], [B, P, D], [B, N, D]
        patches = patches.unflatten(1, grid)  # [B, h, w, D]
        return MaskPrediction(self.class_predictor(queries), self.mask_head(queries), self.upscale_block(patches))

    def _predicts_before(self, block: int) -> bool:
        """Intermediate predictions are supervised to the end of training; without training they serve masking only."""
        return self.config.masked_attention and (self.training or self._masked_blocks[block])

    @torch.no_grad()
    def _query_mask(self, block: int, prediction: MaskPrediction, grid: tuple[int, int]) -> Tensor | None:
        if not self._masked_blocks[block]:
            return None
        keep_probability = self.attn_mask_probs[block]
        return query_attention_mask(prediction.patch_logits(grid), self.config.num_prefix_tokens, keep_probability)

    def _losses(self, predictions: list[MaskPrediction], mask_labels, class_labels) -> dict[str, Tensor]:
        """Weighted losses of every prediction, each with its own matching (their sum is the loss, not their mean)."""
        config = self.config
        weights = {
            "loss_mask": config.mask_weight,
            "loss_dice": config.dice_weight,
            "loss_cross_entropy": config.class_weight,
        }
        masks, labels = check_targets(mask_labels, class_labels, config, predictions[-1].class_logits)
        matches = match([(p.logits_at, p.class_logits) for p in predictions], masks, labels, config)
        matched_logits = [p.matched_mask_logits(of_one) for p, of_one in zip(predictions, matches)]
        parts = self.criterion.losses(matched_logits, [p.class_logits for p in predictions], matches, masks, labels)
        suffixes = [*(f"_{block}" for block in range(len(predictions) - 1)), ""]
        return {
            f"{name}{suffix}": weights[name] * value
            for suffix, losses in zip(suffixes, parts)
            for name, value in losses.items()
        }

    def _patch_grid(self, pixel_values: Tensor) -> tuple[int, int]:
        if pixel_values is None or pixel_values.ndim != 4 or pixel_values.shape[1] != self.config.num_channels:
            shape = None if pixel_values is None else tuple(pixel_values.shape)
            raise ValueError(
                f"pixel_values have shape {shape}; give (batch, {self.config.num_channels}, height, width)"
            )
        (height, width), patch = pixel_values.shape[-2:], as_pair(self.config.patch_size)
        if height % patch[0] or width % patch[1] or not height or not width:
            raise ValueError(
                f"pixel_values are {height} × {width} pixels; both sides must be multiples of the patch size {patch}"
            )
        return height // patch[0], width // patch[1]

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.patch_embeddings


def _read_after_loading(model: EoMTForUniversalSegmentation, incompatible_keys) -> None:
    """Hook of `load_state_dict`; a function of the module, because models are pickled with their hooks."""
    model._read_attn_mask_probs()
