"""What the post-processing methods have in common: full precision, and that a processor has those of its task only."""

import functools
from contextlib import contextmanager

import torch


def full_precision(method):
    """Run a method of `outputs` without gradients, autocast, TF32 or bf16 products: up-sampling by matrices must stay
    exact to fp32 rounding."""

    @functools.wraps(method)
    def exact(self, outputs, *args, **kwargs):
        logits = outputs.masks_queries_logits
        with _full_precision((logits[0] if isinstance(logits, (list, tuple)) else logits).device):
            return method(self, outputs, *args, **kwargs)

    return exact


def for_task(*tasks: str):
    """A method that a processor has only if its task is one of these, so that transformers' pipeline, which asks
    `hasattr` for panoptic, instance, semantic in this order, takes the model's own."""
    return lambda method: _ForTask(method, tasks)


class _ForTask:
    """The descriptor of `for_task`."""

    def __init__(self, method, tasks: tuple[str, ...]):
        self.method, self.tasks = method, tasks
        functools.update_wrapper(self, method)

    def __get__(self, processor, owner=None):
        if processor is None:
            return self.method
        if processor.task not in self.tasks:
            raise AttributeError(
                f"{self.method.__name__} is not for a processor with task={processor.task!r}; make one with "
                f"task={self.tasks[-1]!r}"
            )
        return self.method.__get__(processor, owner)


@contextmanager
def _full_precision(device: torch.device):
    """Precision is set and put back through torch's new interface: reading the old one raises once somebody, such as
    transformers' `tf32=True`, has used the new one. What was inherited is inherited again afterwards, not pinned.
    """
    products = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    before = [backend.fp32_precision for backend in products]
    try:
        for backend in products:
            backend.fp32_precision = "ieee"
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, precision in zip(products, before):
            backend.fp32_precision = "none"
            if backend.fp32_precision != precision:
                backend.fp32_precision = precision
