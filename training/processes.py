"""The processes of torch.distributed in an initialized group (torchrun, accelerate, the Trainer), otherwise one."""

from collections.abc import Callable

import torch.distributed as dist


def in_group() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if in_group() else 0


def world_size() -> int:
    return dist.get_world_size() if in_group() else 1


def gather(value) -> list:
    """The values of all processes by rank, in every process. All processes must call this."""
    values = [value]
    if in_group():
        values = [None] * dist.get_world_size()
        dist.all_gather_object(values, value)
    return values


def gather_on_main(value) -> list | None:
    """The values of all processes by rank in the main process, None in others. All processes must call this."""
    if not in_group():
        return [value]
    values = [None] * world_size() if rank() == 0 else None
    dist.gather_object(value, values)
    return values


def from_main(compute: Callable):
    """Compute in the main process and return the result, or raise its `ValueError`, in all processes."""
    result, error = None, None
    if rank() == 0:
        try:
            result = compute()
        except ValueError as raised:
            error = raised
    if in_group():
        both = [(result, error)]
        dist.broadcast_object_list(both)
        result, error = both[0]
    if error is not None:
        raise error
    return result
