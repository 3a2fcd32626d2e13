"""Recompute cheap activations in the backward pass instead of storing them."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def recomputed(function: Callable[..., Tensor], *inputs: Tensor, modules: Iterable[nn.Module]) -> Tensor:
    """function(*inputs). Training stores the inputs only; random numbers are the same in both passes.

    Args:
        modules: the modules that `function` calls. If they have hooks or observers, nothing is recomputed.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():  # the compiler itself chooses what to keep
        return function(*inputs)
    if torch.jit.is_tracing() or not torch._C._autograd._saved_tensors_hooks_is_enabled():  # torch.func's transforms
        return function(*inputs)
    if any(_acts_on_every_call(part) for module in modules for part in module.modules()):
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False)


def _acts_on_every_call(module: nn.Module) -> bool:
    """Whether a forward has side effects: hooks, or buffers that it updates (observers, spectral norm)."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._buffers)
