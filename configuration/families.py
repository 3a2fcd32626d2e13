"""Backbones: three layouts of blocks, four families of pre-training, and one row for each pre-trained Vision
Transformer (paper, Table A; heads have width 64, those of DINOv3-7B 128).

The model zoo's 7B (WebSSL-DINO) has no row: the paper, the authors' code, timm and transformers do not state its depth,
heads and MLP.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Differences between the blocks of families, and the names of their weights on the hub."""

    name: str
    rope: Literal["dinov3", "eva02"] | None = None
    """Kind of rotary positions."""
    has_position_embeddings: bool = True
    """Learned absolute positions of the patches."""
    class_token_has_position: bool = False
    has_layer_scale: bool = True
    has_mlp_norm: bool = False
    patch_projection_name: str | None = "projection"
    attention_output_name: str = "out_proj"
    mlp_names: tuple[str, str] = ("fc1", "fc2")
    hub_class: str | None = None
    """Class of plain transformers with these blocks."""


VIT = Layout(name="vit", hub_class="EomtForUniversalSegmentation")
DINOV3 = Layout(
    name="dinov3",
    rope="dinov3",
    has_position_embeddings=False,
    patch_projection_name=None,
    attention_output_name="o_proj",
    mlp_names=("up_proj", "down_proj"),
    hub_class="EomtDinov3ForUniversalSegmentation",
)
EVA02 = Layout(name="eva02", rope="eva02", class_token_has_position=True, has_layer_scale=False, has_mlp_norm=True)


@dataclass(frozen=True, kw_only=True)
class Family:
    """Backbones of one pre-training."""

    title: str
    license: str
    """License of the weights."""
    layout: Layout
    recipe_suffix: str
    """Suffix of the names of the paper's recipes."""
    published_as_deltas: bool = False
    """Whether the authors publish trained weights as differences from the backbone."""


FAMILIES = {
    "dinov2": Family(title="DINOv2", license="Apache-2.0", layout=VIT, recipe_suffix=""),
    "dinov3": Family(
        title="DINOv3", license="DINOv3 License", layout=DINOV3, recipe_suffix="_dinov3", published_as_deltas=True
    ),
    "eva02": Family(title="EVA-02", license="MIT", layout=EVA02, recipe_suffix="_eva02"),
    "deit3": Family(title="DeiT-III", license="Apache-2.0", layout=VIT, recipe_suffix="_deit3_in21k"),
}


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A pre-trained ViT. `EoMTConfig.for_backbone` makes a configuration from a row."""

    name: str
    """timm's architecture name."""
    tags: tuple[str, ...]
    """timm's pre-training tags: the part of the full name after the dot."""
    hub_name: str | None
    """Name of the weights in transformers' format on the Hugging Face hub, if they exist."""
    family: str
    """A key of `FAMILIES`."""
    depth: int
    width: int
    heads: int
    patch_size: int
    """Patch size of the pre-trained kernel in pixels; resized to 16 (paper, Section 3.1)."""
    position_grid: int | None
    """Side of the grid of learned absolute positions; None if positions are rotary only."""
    num_register_tokens: int
    layer_norm_eps: float
    layer_scale_init: float
    swiglu: bool = False
    mlp_ratio: float = 4
    """Hidden width of the MLP by width, before a SwiGLU keeps two thirds."""
    qkv_biased: bool = True
    pixel_mean: tuple[float, float, float] | None = None
    """Normalization in pre-training; None for ImageNet's mean and deviation."""
    pixel_std: tuple[float, float, float] | None = None

    @property
    def layout(self) -> Layout:
        return FAMILIES[self.family].layout

    @property
    def title(self) -> str:
        """Name of the pre-training by its authors."""
        registers = " with registers" if self.family == "dinov2" and self.num_register_tokens else ""
        return FAMILIES[self.family].title + registers

    @property
    def size(self) -> str:
        """A key of `SIZES`."""
        return max((size for size in SIZES if f"_{size}_" in self.name), key=len)

    @property
    def num_blocks(self) -> int:
        """L2, the number of blocks that process queries and patches jointly (paper, Appendix A.1)."""
        return {12: 3, 24: 4, 32: 5, 40: 5}[self.depth]


# Depth, width and heads of each size. DINOv2 has the first four.
SIZES = {
    "small": {"depth": 12, "width": 384, "heads": 6},
    "base": {"depth": 12, "width": 768, "heads": 12},
    "large": {"depth": 24, "width": 1024, "heads": 16},
    "giant": {"depth": 40, "width": 1536, "heads": 24, "swiglu": True},
    "small_plus": {"depth": 12, "width": 384, "heads": 6, "swiglu": True, "mlp_ratio": 6},
    "huge_plus": {"depth": 32, "width": 1280, "heads": 20, "swiglu": True, "mlp_ratio": 6},
    "7b": {"depth": 40, "width": 4096, "heads": 32, "swiglu": True, "mlp_ratio": 3, "qkv_biased": False},
}
DINOV2_SIZES = ("small", "base", "large", "giant")
DINOV3_HUB_SIZES = {  # in the names of the hub
    "small": "s16", "base": "b16", "large": "l16", "small_plus": "s16plus", "huge_plus": "h16plus", "7b": "7b16",
}  # fmt: skip
_DINOV2 = {"tags": ("lvd142m",), "family": "dinov2", "patch_size": 14, "position_grid": 37, "layer_norm_eps": 1e-6,
           "layer_scale_init": 1e-5}  # fmt: skip
_DINOV3 = {"family": "dinov3", "patch_size": 16, "position_grid": None, "num_register_tokens": 4,
           "layer_norm_eps": 1e-5, "layer_scale_init": 1e-5}  # fmt: skip
_SATELLITE = {"pixel_mean": (0.430, 0.411, 0.296), "pixel_std": (0.213, 0.156, 0.143)}
_DEIT3 = {"tags": ("fb_in22k_ft_in1k", "fb_in1k"), "family": "deit3", "patch_size": 16, "position_grid": 24,
          "num_register_tokens": 0, "layer_norm_eps": 1e-6, "layer_scale_init": 1e-6}  # fmt: skip
_EVA02 = {"tags": ("mim_m38m",), "family": "eva02", "patch_size": 14, "position_grid": 16, "num_register_tokens": 0,
          "layer_norm_eps": 1e-6, "layer_scale_init": 1.0, "swiglu": True}  # fmt: skip


def _dinov2(size: str, name: str, hub_name: str, registers: int) -> Backbone:
    return Backbone(name=name, hub_name=hub_name, num_register_tokens=registers, **SIZES[size], **_DINOV2)


def _dinov3(size: str, tag: str = "lvd1689m") -> Backbone:
    hub_name = f"facebook/dinov3-vit{DINOV3_HUB_SIZES[size]}-pretrain-{tag}"
    pixels = _SATELLITE if tag == "sat493m" else {}
    return Backbone(
        name=f"vit_{size}_patch16_dinov3", tags=(tag,), hub_name=hub_name, **SIZES[size], **_DINOV3, **pixels
    )


BACKBONES: tuple[Backbone, ...] = (
    *(_dinov2(s, f"vit_{s}_patch14_reg4_dinov2", f"facebook/dinov2-with-registers-{s}", 4) for s in DINOV2_SIZES),
    *(_dinov3(size) for size in DINOV3_HUB_SIZES),
    *(_dinov3(size, "sat493m") for size in ("large", "7b")),
    Backbone(name="deit3_large_patch16_384", hub_name=None, **SIZES["large"], **_DEIT3),
    *(_dinov2(s, f"vit_{s}_patch14_dinov2", f"facebook/dinov2-{s}", 0) for s in DINOV2_SIZES),
    Backbone(name="eva02_large_patch14_224", hub_name=None, **SIZES["large"], **_EVA02),
)


def find_backbone(name: str) -> Backbone:
    """The row with a name of timm, with or without the pre-training tag, or of the hub; without a tag, the first.

    Raises:
        ValueError: when no row has this name.
    """
    architecture, _, tag = name.removeprefix("timm/").partition(".")
    for backbone in BACKBONES:
        if name == backbone.hub_name or (architecture == backbone.name and tag in ("", *backbone.tags)):
            return backbone
    names = dict.fromkeys(row.name for row in BACKBONES)
    raise ValueError(f"unknown backbone {name!r}; choose from {', '.join(names)}")


def backbone_row(family: str, width: int, depth: int, swiglu: bool) -> Backbone:
    """The backbone of this shape; without one, a row of the same family and MLP for scaling."""
    kin = [row for row in BACKBONES if row.family == family and row.swiglu == swiglu]
    return next((row for row in kin if (row.width, row.depth) == (width, depth)), kin[0])


def nearest_backbone(config) -> tuple[Backbone, bool]:
    """The row nearest to the configuration of an EoMT, and whether the sizes are equal (not scaled)."""
    registers, size = bool(config.num_register_tokens), (config.hidden_size, config.num_hidden_layers)
    kin = [row for row in BACKBONES if row.layout is config.layout and row.swiglu == config.gated_mlp]
    kin = [row for row in kin if bool(row.num_register_tokens) == registers] or kin
    row = next((row for row in kin if (row.width, row.depth) == size), kin[0])
    return row, (row.width, row.depth) == size
