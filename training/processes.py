"""The processes of torch.distributed where a group is initialized (torchrun, accelerate, the Trainer), else one."""

import torch.distributed as dist


def in_group() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if in_group() else 0


def world_size() -> int:
    return dist.get_world_size() if in_group() else 1


def gather(value) -> list:
    """Every process's value, by rank, in every process; all of them must call this."""
    values = [value]
    if in_group():
        values = [None] * dist.get_world_size()
        dist.all_gather_object(values, value)
    return values
