"""Layer-wise learning-rate decay (paper §4.1, factor 0.8): the further below the last block, the slower it learns."""

import re

from torch import nn

BACKBONE = ("embeddings.", "layers.", "layernorm.")  # what is pre-trained; all else starts at random
_BLOCK = re.compile(r"layers\.(\d+)\.")
_WRAPPERS = re.compile(r"(module|_orig_mod|_fsdp_wrapped_module)\.")


def is_lora(name: str) -> bool:
    """Whether a parameter is of a low-rank difference to a pre-trained matrix (training/lora.py)."""
    return ".lora_" in name


def lr_multiplier(name: str, depth: int, num_blocks: int, llrd: float, llrd_l2_enabled: bool) -> float:
    """Parameter name (hub format) → its factor on the learning rate.

    Heads and the final norm: 1. Block i: llrd^(depth−1−i). Patch, class, register and position embeddings: as block 0.
    Without `llrd_l2_enabled`, the last `num_blocks` blocks: 1 (DINOv3 recipes).
    """
    if not name.startswith(BACKBONE) or name.startswith("layernorm."):
        return 1.0
    block = _BLOCK.match(name)
    index = int(block[1]) if block else 0
    if block and not llrd_l2_enabled and index >= depth - num_blocks:
        return 1.0
    return llrd ** (depth - 1 - index)


def layerwise_lr_groups(
    model: nn.Module,
    lr: float = 1e-4,
    llrd: float = 0.8,
    llrd_l2_enabled: bool = True,
    backbone_lr: float | None = None,
) -> list[dict]:
    """Model → optimizer parameter groups, one per trainable tensor: "params", "lr", "name", "is_backbone".

    backbone_lr: rate of the backbone's last block, from which the decay starts; None: `lr`, as in the paper. Heads that
    start at random need a higher rate in a short run than what is pre-trained. LoRA's matrices are new as heads are.
    A group's rate follows from its parameter's name alone, not from the order of `named_parameters()`. Weight decay is
    left to the optimizer and holds for every tensor, norms, biases, positions and queries included (authors' code).
    The authors' `lr_mult` has no parameter here: in their code the branch that multiplies by it cannot be reached, and
    all that a value other than 1 does is what `llrd_l2_enabled=False` does.
    """
    if not 0 < llrd <= 1:
        raise ValueError(f"llrd={llrd}: the layer-wise decay is a factor in (0, 1]; 1 turns it off")
    depth = model.config.num_hidden_layers
    num_blocks = model.config.num_blocks if model.config.blocks_are_the_encoders else 0
    groups = []
    for full_name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        name = _WRAPPERS.sub("", full_name)
        factor = 1.0 if is_lora(name) else lr_multiplier(name, depth, num_blocks, llrd, llrd_l2_enabled)
        is_backbone = name.startswith(BACKBONE) and not is_lora(name)
        rate = backbone_lr if is_backbone and backbone_lr is not None else lr
        groups.append({"params": [parameter], "lr": rate * factor, "name": name, "is_backbone": is_backbone})
    return groups
