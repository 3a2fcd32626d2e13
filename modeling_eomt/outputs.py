"""The output of the models."""

from dataclasses import dataclass

from torch import Tensor
from transformers.utils import ModelOutput


@dataclass
class EoMTForUniversalSegmentationOutput(ModelOutput):
    """B images (or windows) · Q queries · C labels · H, W pixels · T tokens · D width · A heads.

    Args:
        loss: the sum of `loss_dict`, a scalar; None without labels.
        loss_dict: weighted losses: "loss_mask", "loss_dice", "loss_cross_entropy" of the last prediction, and with the
            suffixes "_0", "_1", … those of the predictions before the masked blocks, earliest first.
        class_queries_logits: (B, Q, C + 1), the last column is "no object".
        masks_queries_logits: (B, Q, H/4, W/4) for patch size 16.
        auxiliary_logits: {"masks_queries_logits", "class_queries_logits"} of each masked block, earliest first; None
            without masking.
        last_hidden_state: normalized (B, T, D); tokens are queries, class token, registers, patches.
        hidden_states: with `output_hidden_states`, (B, T, D) before the first and after each block. With token merging
            there are fewer tokens, in the order of `token_merging.py`.
        attentions: with `output_attentions`, (B, A, T, T) of each block.
        patch_offsets: copied from the input: (image, start, end) of each window.
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
    """Regroup an output for transformers' pipeline, which takes entry i of every field for image i.

    The pipeline collates `patch_offsets` to one list per image. Tensors of windows become one tensor (windows, …) per
    image. `auxiliary_logits`, with entries per block, are left out.
    """
    counts = [len(offsets) for offsets in output.patch_offsets]
    values = {name: value for name, value in output.items() if name != "auxiliary_logits"}
    if any(counts):
        values |= {name: list(value.split(counts)) for name, value in values.items() if isinstance(value, Tensor)}
    return EoMTForUniversalSegmentationOutput(**values)


def is_grouped(patch_offsets) -> bool:
    """Whether `patch_offsets` holds a list of (image, start, end) per image, rather than one such triple per window."""
    if not isinstance(patch_offsets, (list, tuple)) or len(patch_offsets) == 0:
        return False
    return all(isinstance(group, list) and (not group or not isinstance(group[0], int)) for group in patch_offsets)
