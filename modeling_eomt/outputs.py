"""What the model returns."""

from dataclasses import dataclass

from torch import Tensor
from transformers.utils import ModelOutput


@dataclass
class EoMTForUniversalSegmentationOutput(ModelOutput):
    """B images (or windows) · Q queries · C labels · H, W pixels · T tokens · D width · A heads.

    Args:
        loss: scalar, the sum of `loss_dict`; with labels only.
        loss_dict: weighted parts: "loss_mask", "loss_dice", "loss_cross_entropy" of the last prediction, and the same
            with "_0", "_1", … for the masked blocks' predictions, earliest first.
        class_queries_logits: (B, Q, C + 1), the last column is "no object".
        masks_queries_logits: (B, Q, H/4, W/4) for patch size 16.
        auxiliary_logits: one {"masks_queries_logits", "class_queries_logits"} per masked block, earliest first; None
            with masking off.
        last_hidden_state: (B, T, D), normalised; tokens are queries, class token, registers, patches.
        hidden_states: with `output_hidden_states`, one (B, T, D) per block and one before the first.
        attentions: with `output_attentions`, one (B, A, T, T) per block.
        patch_offsets: as given: (image, start, end) of each window.
    """

    loss: Tensor | None = None
    class_queries_logits: Tensor | None = None
    masks_queries_logits: Tensor | None = None
    auxiliary_logits: list[dict[str, Tensor]] | None = None
    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    patch_offsets: list | None = None
    loss_dict: dict[str, Tensor] | None = None
