"""Learned positions and patch kernels at another size (paper, Section 3.1 and Appendix A.1).

N patches · D width · C channels · p patch side in pixels
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def resample_positions(positions: Tensor, old: tuple[int, int], new: tuple[int, int], num_prefix: int = 0) -> Tensor:
    """(num_prefix + old N, D) → (num_prefix + new N, D): bicubic, antialiased, in fp32; prefix rows are kept.

    Antialiasing changes the values even where the grid grows, so it is part of the definition.
    """
    if old == new:
        return positions
    prefix, patches = positions[:num_prefix], positions[num_prefix:]
    grid = patches.float().unflatten(0, old).permute(2, 0, 1)[None]  # [1, D, h, w]
    grid = F.interpolate(grid, size=new, mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([prefix, grid[0].permute(1, 2, 0).flatten(0, 1).to(positions.dtype)])


def resample_patch_kernel(kernel: Tensor, size: tuple[int, int]) -> Tensor:
    """(D, C, p, p) → (D, C, *size) by FlexiViT's pseudo-inverse resize: ⟨x, w⟩ = ⟨resize(x), resized w⟩.

    B is the matrix of the bicubic antialiased resize of p × p images; the new kernel is pinv(Bᵀ) w.
    """
    old = tuple(kernel.shape[-2:])
    if old == size:
        return kernel
    basis = torch.eye(old[0] * old[1], device=kernel.device).unflatten(1, (1, *old))  # [p·p, 1, p, p]
    resize = F.interpolate(basis, size=size, mode="bicubic", antialias=True, align_corners=False).flatten(1).T
    resized = kernel.float().flatten(2) @ torch.linalg.pinv(resize)  # [D, C, new p·p]
    return resized.unflatten(-1, size).to(kernel.dtype)
