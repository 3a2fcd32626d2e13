"""What makes a training step cheaper on a CPU: bfloat16 where its instructions are, and memory that is kept.

glibc maps every large tensor anew and gives it back after use: half a million page faults a step of a ViT-S in fp32.
"""

import ctypes
import sys

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGEST = 2**31 - 1


def keep_memory() -> bool:
    """Let the allocator keep freed memory for the next step; False where it is not glibc's. Lasts for the process."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST)) and bool(mallopt(M_TRIM_THRESHOLD, LARGEST))


def has_fast_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices itself (avx512_bf16, AMX); emulated it is slower than float32."""
    return any(getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
