"""The time that no implementation with the same kernels can go below: matrix products and attention, nothing else."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .measure import seconds


def matrix_products(
    config, dtype: torch.dtype, repeats: int, batch: int = 1, predictions: int = 1, backward: bool = False
) -> float:
    """Seconds that a model's linear layers and attention calls take when nothing else is done.

    Args:
        predictions: how often the mask module runs; 1 at inference, L2 + 1 in a masked training step.
        backward: with the gradients of all operands.
    """
    width, heads, grid = config.hidden_size, config.num_attention_heads, config.grid_size
    patches, queries = batch * grid[0] * grid[1], batch * config.num_queries
    depth, joint = config.num_hidden_layers, config.num_blocks
    free_tokens = grid[0] * grid[1] + config.num_prefix_tokens

    def linear(rows: int, inputs: int, outputs: int) -> Callable:
        x, w, b = torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(outputs)
        return _call(F.linear, [x, w, b], dtype, backward)

    def attention(tokens: int) -> Callable:
        shape = (batch, heads, tokens, width // heads)
        return _call(F.scaled_dot_product_attention, [torch.randn(shape) for _ in range(3)], dtype, backward)

    calls = [(linear(patches, 3 * 16 * 16, width), 1)]
    for tokens, blocks in ((free_tokens, depth - joint), (free_tokens + config.num_queries, joint)):
        rows = batch * tokens
        calls += [(linear(rows, width, width), 4 * blocks), (attention(tokens), blocks)]
        calls += [(linear(rows, width, 4 * width), blocks), (linear(rows, 4 * width, width), blocks)]
    for level in range(config.num_upscale_blocks):
        calls.append((linear(patches * 4**level, width, 4 * width), predictions))
    calls.append((linear(queries, width, width), 3 * predictions))
    calls.append((linear(queries, width, config.num_labels + 1), predictions))
    if not backward:  # every query's mask; training needs those of the few matched queries only
        calls.append((linear(queries, width, patches // batch * 4**config.num_upscale_blocks), 1))
    return sum(count * seconds(call, repeats) for call, count in calls)


def _call(function: Callable, operands: list[Tensor], dtype: torch.dtype, backward: bool) -> Callable:
    operands = [operand.to(dtype).requires_grad_(backward) for operand in operands]
    if not backward:
        return lambda: function(*operands)
    gradient = torch.ones_like(function(*operands))
    return lambda: torch.autograd.grad(function(*operands), operands, gradient)
