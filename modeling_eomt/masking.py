"""Masked attention and its annealing (paper, Sections 3.2 and 3.3).

B images · Q queries · P prefix tokens · N patches · h, w patches down, across · H, W mask logits down, across
"""

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def query_attention_mask(
    mask_logits: Tensor, grid: tuple[int, int], num_prefix: int, keep_probability: Tensor | None
) -> Tensor:
    """Intermediate mask logits (B, Q, H, W) → where each query may look, (B, 1, Q, Q + P + N) bool, for all heads.

    A query sees the patches inside its predicted mask, and every query and prefix token, so no row is empty. With
    `keep_probability`, a scalar tensor, each query of each image keeps its mask with that probability; None keeps all.
    """
    logits = F.interpolate(mask_logits, size=grid, mode="bilinear", align_corners=False)  # [B, Q, h, w]
    visible = logits.flatten(2) > 0  # [B, Q, N]
    if keep_probability is not None:
        dropped = torch.rand(visible.shape[:2], device=visible.device) > keep_probability  # [B, Q]
        visible = visible | dropped[..., None]
    return F.pad(visible, (visible.shape[1] + num_prefix, 0), value=True)[:, None]
