"""Self-attention in which only the queries' rows may be masked.

B images · A heads · T tokens = Q queries + P prefix + N patches · D width · E = D / A head width
"""

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import logging

from ..configuration import EoMTConfig
from .rope import RotaryTable

logger = logging.get_logger(__name__)


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[Tensor, Tensor]:
    """(B, A, rows, E), keys and values (B, A, T, E), bool mask or None → ((B, rows, A, E), weights (B, A, rows, T))."""
    weights = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        weights = weights.masked_fill(~attention_mask, torch.finfo(weights.dtype).min)
    weights = weights.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2), weights


class Attention(nn.Module):
    """Multi-head self-attention: (B, T, D) → (B, T, D), and the weights (B, A, T, T) if the kernel returns them.

    With a mask, attention takes two calls. Patch and prefix rows are never masked and keep the fused kernel; the few
    query rows share one bool mask over all heads (paper, Section 3.3: only query → patch attention is restricted).
    """

    def __init__(self, config: EoMTConfig):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.scaling = (config.hidden_size // self.num_heads) ** -0.5
        self.is_causal = False  # read by transformers' kernels
        width, biased = config.hidden_size, config.attention_biases
        self.q_proj = nn.Linear(width, width, bias=biased["query"])
        self.k_proj = nn.Linear(width, width, bias=biased["key"])
        self.v_proj = nn.Linear(width, width, bias=biased["value"])
        self.add_module(config.layout.attention_output_name, nn.Linear(width, width, bias=biased["output"]))

    def forward(
        self, hidden_states: Tensor, query_mask: Tensor | None = None, rotary: RotaryTable | None = None, **kwargs
    ) -> tuple[Tensor, Tensor | None]:
        """`query_mask` (B, 1, Q, T) bool, True where a query may look; it restricts the first Q rows."""
        projected = (self.q_proj(hidden_states), self.k_proj(hidden_states), self.v_proj(hidden_states))
        query, key, value = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in projected)  # [B, A, T, E]
        if rotary is not None:  # under autocast the table is in fp32, and kernels take one type
            query, key = (rotary.rotate(x).to(value.dtype) for x in (query, key))

        if query_mask is None:
            output, weights = self._attend(query, key, value, None, **kwargs)  # [B, T, A, E]
        else:
            rows = query_mask.shape[2]
            masked_rows, free_rows = query.split([rows, query.shape[2] - rows], dim=2)
            masked, masked_weights = self._attend(masked_rows, key, value, query_mask, **kwargs)
            free, free_weights = self._attend(free_rows, key, value, None, **kwargs)
            output = torch.cat([masked, free], dim=1)
            weights = None if free_weights is None else torch.cat([masked_weights, free_weights], dim=2)

        output_projection = getattr(self, self.config.layout.attention_output_name)
        return output_projection(output.flatten(2)), weights

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs):
        kernel = self.config._attn_implementation
        if kwargs.get("output_attentions") and kernel != "eager":
            logger.warning_once(f"{kernel!r} attention cannot return its weights: output_attentions=True runs 'eager'.")
            kernel = "eager"
        elif mask is not None and kernel != "eager":
            kernel = "sdpa"  # the fused kernels of other names take no mask per row
        attention_interface = ALL_ATTENTION_FUNCTIONS.get_interface(kernel, eager_attention_forward)
        return attention_interface(
            self,
            query,
            key,
            value,
            mask,
            is_causal=False,
            scaling=self.scaling,
            dropout=self.config.attention_dropout if self.training else 0.0,
        )
