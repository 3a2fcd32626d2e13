"""The pre-trained Vision Transformers EoMT starts from: one row each (paper, Table A; head width is 64 everywhere)."""

from dataclasses import dataclass
from typing import Literal

Family = Literal["dinov2", "deit3", "dinov3", "eva02"]


@dataclass(frozen=True)
class Backbone:
    """A ViT as pre-trained. `EoMTConfig.for_backbone` turns a row into a model's configuration."""

    name: str
    """timm's architecture name."""
    tags: tuple[str, ...]
    """timm's pre-training tags: the part of the full name after the dot."""
    hub_name: str | None
    """Name on the Hugging Face hub of the weights in transformers' own format, where they exist."""
    family: Family
    depth: int
    width: int
    heads: int
    patch_size: int
    """Patch size in pixels of the pre-trained kernel; resized to 16 (paper, Section 3.1)."""
    position_grid: int | None
    """Side of the learned absolute position embedding's grid; None where positions are rotary only."""
    num_register_tokens: int
    layer_norm_eps: float
    layer_scale_init: float
    swiglu: bool = False

    @property
    def num_blocks(self) -> int:
        """L2, the number of blocks that process queries and patches jointly (paper, Appendix A.1)."""
        return {12: 3, 24: 4, 40: 5}[self.depth]


def _dinov2(name: str, hub_size: str, depth: int, width: int, heads: int, swiglu: bool = False) -> Backbone:
    hub_name = f"facebook/dinov2-with-registers-{hub_size}"
    return Backbone(
        name, ("lvd142m",), hub_name, "dinov2", depth, width, heads, 14, 37, 4, 1e-6, 1e-5, swiglu=swiglu
    )  # fmt: skip


def _dinov3(name: str, hub_size: str, depth: int, width: int, heads: int) -> Backbone:
    hub_name = f"facebook/dinov3-vit{hub_size}16-pretrain-lvd1689m"
    return Backbone(name, ("lvd1689m",), hub_name, "dinov3", depth, width, heads, 16, None, 4, 1e-5, 1e-5)


_DEIT3_TAGS = ("fb_in22k_ft_in1k", "fb_in1k")

BACKBONES: tuple[Backbone, ...] = (
    _dinov2("vit_small_patch14_reg4_dinov2", "small", 12, 384, 6),
    _dinov2("vit_base_patch14_reg4_dinov2", "base", 12, 768, 12),
    _dinov2("vit_large_patch14_reg4_dinov2", "large", 24, 1024, 16),
    _dinov2("vit_giant_patch14_reg4_dinov2", "giant", 40, 1536, 24, swiglu=True),
    _dinov3("vit_small_patch16_dinov3", "s", 12, 384, 6),
    _dinov3("vit_base_patch16_dinov3", "b", 12, 768, 12),
    _dinov3("vit_large_patch16_dinov3", "l", 24, 1024, 16),
    Backbone("deit3_large_patch16_384", _DEIT3_TAGS, None, "deit3", 24, 1024, 16, 16, 24, 0, 1e-6, 1e-6),
    Backbone("eva02_large_patch14_224", ("mim_m38m",), None, "eva02", 24, 1024, 16, 14, 16, 0, 1e-6, 1.0, swiglu=True),
)


def find_backbone(name: str) -> Backbone:
    """The row for timm's name, with or without the pre-training tag, or for the hub's name.

    Raises:
        ValueError: when no row has that name.
    """
    architecture, _, tag = name.removeprefix("timm/").partition(".")
    for backbone in BACKBONES:
        if name == backbone.hub_name or (architecture == backbone.name and tag in ("", *backbone.tags)):
            return backbone
    raise ValueError(f"unknown backbone {name!r}; choose from {', '.join(row.name for row in BACKBONES)}")
