"""Cheap activations are computed again in the backward pass instead of being kept."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def recomputed(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """function(*inputs), of which training keeps the inputs only; the function must use no random numbers."""
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():  # the compiler itself chooses what to keep
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
