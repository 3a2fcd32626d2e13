"""Every fact of a backbone: three layouts of blocks, four families of pre-training, and the pre-trained Vision
Transformers EoMT starts from, one row each (paper, Table A; the head width is 64 everywhere).

The model zoo's 7B (WebSSL-DINO) has no row: neither the paper nor the authors' code, timm or transformers state its
depth, heads and MLP, and a row that was guessed could load no checkpoint.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What distinguishes the blocks of a family, and the names that the hub gives to their weights."""

    name: str
    rope: Literal["dinov3", "eva02"] | None = None
    """Kind of rotary positions."""
    has_position_embeddings: bool = True
    """Learned absolute positions, of the patches."""
    class_token_has_position: bool = False
    has_layer_scale: bool = True
    has_mlp_norm: bool = False
    patch_projection_name: str | None = "projection"
    attention_output_name: str = "out_proj"
    mlp_names: tuple[str, str] = ("fc1", "fc2")
    hub_class: str | None = None
    """Class of plain transformers that has these blocks."""


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
    """Of the weights."""
    layout: Layout
    recipe_suffix: str
    """End of the names of the paper's recipes."""
    published_as_deltas: bool = False
    """Whether the authors' trained weights are published as differences from the backbone's."""


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
    """A ViT as pre-trained. `EoMTConfig.for_backbone` turns a row into a model's configuration."""

    name: str
    """timm's architecture name."""
    tags: tuple[str, ...]
    """timm's pre-training tags: the part of the full name after the dot."""
    hub_name: str | None
    """Name on the Hugging Face hub of the weights in transformers' own format, where they exist."""
    family: str
    """A key of `FAMILIES`."""
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
    def layout(self) -> Layout:
        return FAMILIES[self.family].layout

    @property
    def title(self) -> str:
        """The pre-training, as its authors call it."""
        registers = " with registers" if self.family == "dinov2" and self.num_register_tokens else ""
        return FAMILIES[self.family].title + registers

    @property
    def size(self) -> str:
        """A key of `SIZES`."""
        return next(size for size in SIZES if f"_{size}_" in self.name)

    @property
    def num_blocks(self) -> int:
        """L2, the number of blocks that process queries and patches jointly (paper, Appendix A.1)."""
        return {12: 3, 24: 4, 40: 5}[self.depth]


# Depth, width and heads of the sizes that several families share.
SIZES = {
    "small": {"depth": 12, "width": 384, "heads": 6},
    "base": {"depth": 12, "width": 768, "heads": 12},
    "large": {"depth": 24, "width": 1024, "heads": 16},
    "giant": {"depth": 40, "width": 1536, "heads": 24, "swiglu": True},
}
_DINOV2 = {"tags": ("lvd142m",), "family": "dinov2", "patch_size": 14, "position_grid": 37, "layer_norm_eps": 1e-6,
           "layer_scale_init": 1e-5}  # fmt: skip
_DINOV3 = {"tags": ("lvd1689m",), "family": "dinov3", "patch_size": 16, "position_grid": None,
           "num_register_tokens": 4, "layer_norm_eps": 1e-5, "layer_scale_init": 1e-5}  # fmt: skip
_DEIT3 = {"tags": ("fb_in22k_ft_in1k", "fb_in1k"), "family": "deit3", "patch_size": 16, "position_grid": 24,
          "num_register_tokens": 0, "layer_norm_eps": 1e-6, "layer_scale_init": 1e-6}  # fmt: skip
_EVA02 = {"tags": ("mim_m38m",), "family": "eva02", "patch_size": 14, "position_grid": 16, "num_register_tokens": 0,
          "layer_norm_eps": 1e-6, "layer_scale_init": 1.0, "swiglu": True}  # fmt: skip


def _dinov2(size: str, name: str, hub_name: str, registers: int) -> Backbone:
    return Backbone(name=name, hub_name=hub_name, num_register_tokens=registers, **SIZES[size], **_DINOV2)


def _dinov3(size: str) -> Backbone:
    hub_name = f"facebook/dinov3-vit{size[0]}16-pretrain-lvd1689m"
    return Backbone(name=f"vit_{size}_patch16_dinov3", hub_name=hub_name, **SIZES[size], **_DINOV3)


BACKBONES: tuple[Backbone, ...] = (
    *(_dinov2(s, f"vit_{s}_patch14_reg4_dinov2", f"facebook/dinov2-with-registers-{s}", 4) for s in SIZES),
    *(_dinov3(s) for s in ("small", "base", "large")),
    Backbone(name="deit3_large_patch16_384", hub_name=None, **SIZES["large"], **_DEIT3),
    *(_dinov2(s, f"vit_{s}_patch14_dinov2", f"facebook/dinov2-{s}", 0) for s in SIZES),
    Backbone(name="eva02_large_patch14_224", hub_name=None, **SIZES["large"], **_EVA02),
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


def backbone_row(family: str, width: int, depth: int, swiglu: bool) -> Backbone:
    """The backbone of that shape; where there is none, a row of the same family and MLP, to be scaled."""
    kin = [row for row in BACKBONES if row.family == family and row.swiglu == swiglu]
    return next((row for row in kin if (row.width, row.depth) == (width, depth)), kin[0])


def nearest_backbone(config) -> tuple[Backbone, bool]:
    """Configuration of an EoMT → (its row, whether it is that row's size and not a scaled one)."""
    swiglu = config.gated_mlp and config.layout is not DINOV3
    registers, size = bool(config.num_register_tokens), (config.hidden_size, config.num_hidden_layers)
    kin = [row for row in BACKBONES if row.layout is config.layout and row.swiglu == swiglu]
    kin = [row for row in kin if bool(row.num_register_tokens) == registers] or kin
    row = next((row for row in kin if (row.width, row.depth) == size), kin[0])
    return row, (row.width, row.depth) == size
