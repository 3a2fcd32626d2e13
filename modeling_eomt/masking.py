"""Masked attention and its annealing (paper, Sections 3.2 and 3.3).

B images · Q queries · P prefix tokens · N patches = h · w, patches down, across
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def query_attention_mask(patch_logits: Tensor, num_prefix: int, keep_probability: Tensor) -> Tensor:
    """Mask logits, one per patch (B, Q, h, w) → where each query may look, (B, 1, Q, Q + P + N) bool for all heads.

    A query sees the patches inside its predicted mask, and every query and prefix token, so no row is empty. Each
    query of each image keeps its mask with `keep_probability`, a scalar tensor, and otherwise looks everywhere.
    """
    visible = patch_logits.flatten(2) > 0  # [B, Q, N]
    dropped = torch.rand(*visible.shape[:2], device=visible.device) > keep_probability  # [B, Q]
    visible = visible | dropped[..., None]
    return F.pad(visible, (visible.shape[1] + num_prefix, 0), value=True)[:, None]
