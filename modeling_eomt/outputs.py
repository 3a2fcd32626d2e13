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
        last_hidden_state: (B, T, D), normalized; tokens are queries, class token, registers, patches.
        hidden_states: with `output_hidden_states`, one (B, T, D) per block and one before the first; with token
            merging of fewer tokens, in the order of `token_merging.py`.
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


def group_by_image(output: EoMTForUniversalSegmentationOutput) -> EoMTForUniversalSegmentationOutput:
    """Output of a batch of transformers' pipeline → the same with one entry per image everywhere.

    The pipeline collates `patch_offsets` to one list an image, and later takes entry i of every output for image i. So
    windows become lists of (windows, …) tensors, and what has entries per block, `auxiliary_logits`, is left out.
    """
    counts = [len(offsets) for offsets in output.patch_offsets]
    values = {name: value for name, value in output.items() if name != "auxiliary_logits"}
    if any(counts):
        values |= {name: list(value.split(counts)) for name, value in values.items() if isinstance(value, Tensor)}
    return EoMTForUniversalSegmentationOutput(**values)


def is_grouped(patch_offsets) -> bool:
    """Whether `patch_offsets` holds one list an image, of (image, start, end) each, not one such entry a window."""
    if not isinstance(patch_offsets, (list, tuple)) or len(patch_offsets) == 0:
        return False
    return all(isinstance(group, list) and (not group or not isinstance(group[0], int)) for group in patch_offsets)
