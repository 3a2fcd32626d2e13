"""One pre-norm ViT block and its parts.

B images · T tokens · D width · M width of the MLP
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from ..configuration import EoMTConfig
from .attention import Attention
from .recompute import recomputed
from .rope import RotaryTable


class LayerScale(nn.Module):
    """Learned gain per channel: (B, T, D) → (B, T, D)."""

    def __init__(self, config: EoMTConfig):
        super().__init__()
        self.lambda1 = nn.Parameter(torch.full((config.hidden_size,), float(config.layerscale_value)))

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states * self.lambda1


class SwiGLU(nn.Module):
    """silu(gate(x)) · up(x), for EVA-02 normalized, → down: (B, T, D) → (B, T, D)."""

    def __init__(self, config: EoMTConfig):
        super().__init__()
        width, hidden, bias = config.hidden_size, config.mlp_width, config.mlp_biased
        self.gate_proj = nn.Linear(width, hidden, bias=bias)
        self.up_proj = nn.Linear(width, hidden, bias=bias)
        self.norm = nn.LayerNorm(hidden, eps=config.layer_norm_eps) if config.layout.has_mlp_norm else nn.Identity()
        self.down_proj = nn.Linear(hidden, width, bias=bias)
        self.activation = ACT2FN[config.gate_activation]

    def forward(self, hidden_states: Tensor) -> Tensor:
        gate, up = self.gate_proj(hidden_states), self.up_proj(hidden_states)  # [B, T, M] each
        return recomputed(self._project, gate, up, modules=[self.activation, self.norm, self.down_proj])

    def _project(self, gate: Tensor, up: Tensor) -> Tensor:
        """(B, T, M) each → (B, T, D)."""
        return self.down_proj(self.norm(self.activation(gate) * up))


class MLP(nn.Module):
    """Linear, activation, linear: (B, T, D) → (B, T, D). The linear layers have the hub's names.

    The activation's output is the largest tensor that a block would keep for its backward pass.
    """

    def __init__(self, config: EoMTConfig):
        super().__init__()
        width, hidden, bias = config.hidden_size, config.mlp_width, config.mlp_biased
        self.expand_name, self.reduce_name = config.layout.mlp_names
        self.add_module(self.expand_name, nn.Linear(width, hidden, bias=bias))
        self.activation = ACT2FN[config.hidden_act]
        self.add_module(self.reduce_name, nn.Linear(hidden, width, bias=bias))

    def forward(self, hidden_states: Tensor) -> Tensor:
        expand = getattr(self, self.expand_name)
        expanded = expand(hidden_states)  # [B, T, M]
        return recomputed(self._reduce, expanded, modules=[self.activation, getattr(self, self.reduce_name)])

    def _reduce(self, expanded: Tensor) -> Tensor:
        """(B, T, M) → (B, T, D)."""
        reduce = getattr(self, self.reduce_name)
        return reduce(self.activation(expanded))


class DropPath(nn.Module):
    """Stochastic depth: in training, each image skips the residual branch with the given probability."""

    def __init__(self, probability: float):
        super().__init__()
        self.probability = probability

    def forward(self, hidden_states: Tensor) -> Tensor:
        if not self.training or self.probability == 0:
            return hidden_states
        keep = 1 - self.probability
        kept = hidden_states.new_empty(hidden_states.shape[0], 1, 1).bernoulli_(keep)
        return hidden_states * kept / max(keep, 1e-12)


class EoMTLayer(GradientCheckpointingLayer):
    """x + scale(attention(norm(x))), then x + scale(mlp(norm(x))): (B, T, D) → (B, T, D).

    `merge`, called in between, may leave fewer tokens (token_merging.py).
    """

    def __init__(self, config: EoMTConfig):
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attention = Attention(config)
        self.layer_scale1 = LayerScale(config) if config.layout.has_layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = SwiGLU(config) if config.gated_mlp else MLP(config)
        self.layer_scale2 = LayerScale(config) if config.layout.has_layer_scale else nn.Identity()
        self.drop_path = DropPath(config.drop_path_rate)

    def forward(
        self,
        hidden_states: Tensor,
        query_mask: Tensor | None = None,
        rotary: RotaryTable | None = None,
        merge: Callable[[Tensor], Tensor] | None = None,
        **kwargs,
    ) -> Tensor:
        attended, _ = self.attention(self.norm1(hidden_states), query_mask, rotary, **kwargs)
        hidden_states = hidden_states + self.drop_path(self.layer_scale1(attended))
        if merge is not None:
            hidden_states = merge(hidden_states)
        transformed = self.mlp(self.norm2(hidden_states))
        return hidden_states + self.drop_path(self.layer_scale2(transformed))
