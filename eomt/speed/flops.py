"""FLOPs by the paper's count: one multiply-add is one FLOP, with the rules of fvcore.

Matrix products, convolutions and both products of the attention count their multiply-adds. LayerNorm and GroupNorm
count 5 per element, BatchNorm in evaluation mode 2, bilinear resampling and point sampling 4 per output element.
Activations, softmax, sums, biases and `baddbmm` (the masked products in torch's MultiheadAttention) do not count.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, shape_wrapper

aten = torch.ops.aten


def count_flops(model: nn.Module, *inputs: Tensor, **named: Tensor) -> int:
    """Multiply-adds of a forward pass of `model`, in evaluation mode. On the meta device nothing is computed."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), counting() as counter:
            model(*inputs, **named)
    finally:
        model.train(was_training)
    return counter.multiply_adds


@contextmanager
def counting() -> Iterator["_Counter"]:
    """Count the operations in a `with` block. Its target has the sum as `multiply_adds`."""
    with _Counter() as counter, _Attention(counter):
        yield counter


class CountedModel:
    """A model with the multiply-adds of all its calls in `flops`. For counts that depend on the image."""

    def __init__(self, model: nn.Module):
        self.model, self.flops = model, 0

    def __call__(self, *args, **kwargs):
        with counting() as counter:
            output = self.model(*args, **kwargs)
        self.flops += counter.multiply_adds
        return output

    def __getattr__(self, name: str):
        return getattr(self.__dict__["model"], name)


class _Attention(TorchFunctionMode):
    """Counts both products of `scaled_dot_product_attention` by their shapes.

    `_Counter` would see its kernels, which depend on the device, the mask and the version of torch.
    """

    def __init__(self, counter: "_Counter"):
        super().__init__()
        self.counter = counter

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        before = self.counter.flops
        result = func(*args, **(kwargs or {}))
        given = dict(zip(("query", "key", "value"), args)) | (kwargs or {})
        query, key, value = given["query"], given["key"], given["value"]
        weights = query.shape[:-1].numel() * key.shape[-2]
        self.counter.flops = before + 2 * weights * (query.shape[-1] + value.shape[-1])  # in place of the kernels'
        return result


class _Counter(TorchDispatchMode):
    """Adds up the counts of all operations.

    Not torch's FlopCounterMode: it also counts by module, with hooks that fail if a model enables gradients itself.
    """

    def __init__(self):
        super().__init__()
        self.flops = 0

    @property
    def multiply_adds(self) -> int:
        return self.flops // 2  # torch's own formulas count both operations of a multiply-add

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        rule = _RULES.get(func._overloadpacket)
        if rule is None and func is not torch.ops.prim.device.default:
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        if rule is not None:
            self.flops += rule(*args, **kwargs, out_val=result)
        return result


def _per_element(count: int, of_output: bool = False):
    """The rule of a number of multiply-adds for each element of the first input, or of the output."""

    def rule(shape, *args, out_shape=None, **kwargs) -> int:
        return 2 * count * math.prod(out_shape if of_output else shape)

    return rule


_RULES = {
    **flop_registry,
    **{
        operation: shape_wrapper(rule)
        for operation, rule in {
            aten.native_layer_norm: _per_element(5),
            aten.native_group_norm: _per_element(5),
            aten.native_batch_norm: _per_element(2),
            aten._native_batch_norm_legit_no_training: _per_element(2),
            aten.cudnn_batch_norm: _per_element(2),
            aten.upsample_bilinear2d: _per_element(4, of_output=True),
            aten._upsample_bilinear2d_aa: _per_element(4, of_output=True),
            aten.grid_sampler_2d: _per_element(4, of_output=True),
            aten.baddbmm: _per_element(0),
        }.items()
    },
}
