"""Learned positions and patch kernels at another size (paper, Section 3.1 and Appendix A.1).

N patches · D width · C channels · p patch side in pixels · h, w patches down, across
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def resample_positions(positions: Tensor, old: tuple[int, int], new: tuple[int, int], num_prefix: int = 0) -> Tensor:
    """(num_prefix + old N, D) → (num_prefix + new N, D): bicubic, antialiased, in fp32; prefix rows are kept.

    Antialiasing changes the values even where the grid grows, so it is part of the definition.
    """
    any_size = isinstance(new[0], torch.SymInt) or isinstance(new[1], torch.SymInt)  # in an exported program
    if not any_size and old == new:
        return positions
    prefix, patches = positions[:num_prefix], positions[num_prefix:]
    grid = patches.float().unflatten(0, old)  # [h, w, D]
    if torch.compiler.is_compiling():  # PyTorch cannot trace its resize with sizes that vary
        down, across = (_bicubic_matrix(*sides, patches.device) for sides in zip(old, new))
        resized = torch.einsum("yh,xw,hwd->yxd", down, across, grid)
    else:
        grid = grid.permute(2, 0, 1)[None]  # [1, D, h, w]
        resized = F.interpolate(grid, size=new, mode="bicubic", antialias=True, align_corners=False)
        resized = resized[0].permute(1, 2, 0)
    return torch.cat([prefix, resized.flatten(0, 1).to(positions.dtype)])


def _bicubic_matrix(old: int, new: int, device: torch.device) -> Tensor:
    """Antialiased bicubic resize of one axis as a matrix: (new, old), as `interpolate` computes it (a = −0.5)."""
    ratio = torch.full((), new, dtype=torch.float32, device=device) / old
    centers = (torch.arange(new, dtype=torch.float32, device=device) + 0.5) / ratio
    samples = torch.arange(old, dtype=torch.float32, device=device) + 0.5
    distance = (samples - centers[:, None]).abs() * ratio.clamp(max=1)  # a smaller grid widens the filter
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
    return weights / weights.sum(1, keepdim=True)


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
