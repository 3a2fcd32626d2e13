"""The forward pass that all models share: check images, mask attention, compute losses, return the output.

B images · Q queries · C labels · T tokens · D width · H, W pixels
"""

import torch
from torch import Tensor, nn
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from ..configuration import EoMTConfig, as_pair
from .embeddings import Embeddings
from .heads import MaskPrediction
from .layers import EoMTLayer
from .loss import Criterion
from .masking import MaskSchedule
from .outputs import EoMTForUniversalSegmentationOutput, group_by_image, is_grouped
from .pretrained import EoMTPreTrainedModel, own_config


class UniversalSegmentationModel(MaskSchedule, EoMTPreTrainedModel):
    """A ViT (`embeddings`, `layers`, `layernorm`), masked attention and the loss. Subclasses add `segment`."""

    def __init__(self, config: EoMTConfig):
        config = own_config(config)
        super().__init__(config)
        self.build_vit()
        self.criterion = Criterion(config)
        self.init_mask_schedule(config.num_blocks)

    def build_vit(self) -> None:
        """Add the Vision Transformer. The constructor calls this before anything else is added."""
        config = self.config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(EoMTLayer(config) for _ in range(config.num_hidden_layers))
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def segment(self, pixel_values: Tensor, all_logits: bool, **kwargs) -> tuple[list[MaskPrediction], Tensor]:
        """Images → the predictions in their order, and the tokens (B, T, D) after the last block.

        With `all_logits`, the logits of each intermediate prediction are computed before its mask, which reuses them.
        """
        raise NotImplementedError

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        mask_labels: list[Tensor] | Tensor | None = None,
        class_labels: list[Tensor] | Tensor | None = None,
        patch_offsets: list | None = None,
        output_auxiliary_logits: bool = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> EoMTForUniversalSegmentationOutput:
        """Images → class and mask logits of every query, and the loss if there are labels.

        Args:
            pixel_values: (B, 3, H, W), normalized; H and W any multiples of the patch size.
            mask_labels: list of (n, H, W) bool or float masks, or one (B, n, H, W) tensor.
            class_labels: list of (n,) labels, or one (B, n) tensor; both or neither.
            patch_offsets: copied to the output, for the stitching of windows.
            output_auxiliary_logits: False leaves out the logits of intermediate predictions. The loss needs none.

        Raises:
            ValueError: for an input of a wrong shape, or a label outside the configuration.
        """
        self.refresh_masked_blocks()
        if (mask_labels is None) != (class_labels is None):
            missing = "mask_labels" if mask_labels is None else "class_labels"
            raise ValueError(f"{missing} is None; the loss needs both mask_labels and class_labels")
        if mask_labels is not None:
            output = self._output_with_loss(pixel_values, mask_labels, class_labels, output_auxiliary_logits, **kwargs)
        else:
            output = self._output(pixel_values, [], output_auxiliary_logits, **kwargs)
        if patch_offsets is not None:
            output["patch_offsets"] = patch_offsets
        return group_by_image(output) if is_grouped(patch_offsets) else output

    @torch.compiler.disable(recursive=False)
    def _output_with_loss(self, pixel_values, mask_labels, class_labels, output_auxiliary_logits, **kwargs):
        """Not compiled: shapes depend on each batch's number of masks, and the matching runs on the CPU."""
        predictions = []
        output = self._output(pixel_values, predictions, output_auxiliary_logits, **kwargs)
        blocks = [block for block in range(self.config.num_blocks) if self.predicts_before(block)]
        losses = _losses(self.criterion, predictions, mask_labels, class_labels, blocks)
        return EoMTForUniversalSegmentationOutput(loss=sum(losses.values()), loss_dict=losses, **output)

    @capture_outputs
    def _output(
        self, pixel_values: Tensor, predictions: list[MaskPrediction], output_auxiliary_logits: bool, **kwargs
    ) -> EoMTForUniversalSegmentationOutput:
        """Everything but the loss, in one graph when compiled. Fills `predictions`."""
        found, hidden_states = self.segment(pixel_values, output_auxiliary_logits, **kwargs)
        predictions.extend(found)
        auxiliary_logits = [prediction.logits() for prediction in found[:-1]] if output_auxiliary_logits else None
        return EoMTForUniversalSegmentationOutput(
            **found[-1].logits(), auxiliary_logits=auxiliary_logits or None, last_hidden_state=hidden_states
        )

    def patch_grid(self, pixel_values: Tensor) -> tuple[int, int]:
        """Images (B, C, H, W) → number of patches (down, across).

        Raises:
            ValueError: for other numbers of dimensions or channels, or sides that the patch size does not divide.
        """
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


@torch.compiler.disable
def _losses(criterion: Criterion, predictions, mask_labels, class_labels, blocks: list[int]) -> dict[str, Tensor]:
    return criterion.losses(predictions, mask_labels, class_labels, blocks)
