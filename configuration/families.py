"""The backbones whose blocks differ from DINOv2's: DINOv3 and EVA-02."""

from typing import Any, ClassVar, Literal

from .backbones import Backbone
from .eomt import EoMTConfig
from .field_types import wrong


class EoMTDINOv3Config(EoMTConfig):
    r"""EoMT on DINOv3, `model_type` "eomt_dinov3": rotary positions only, key projection without bias.

    Fields, names and defaults as transformers' `EomtDinov3Config`. `pos_embed_rescale` (random rescaling of the patch
    coordinates in training) is on by default there; the authors' code trains without it, and so does `for_backbone`.
    """

    model_type = "eomt_dinov3"
    layout: ClassVar[str] = "dinov3"
    rope: ClassVar[Literal["dinov3", "eva02"] | None] = "dinov3"
    has_position_embeddings: ClassVar[bool] = False
    patch_projection_name: ClassVar[str | None] = None
    attention_output_name: ClassVar[str] = "o_proj"
    mlp_names: ClassVar[tuple[str, str]] = ("up_proj", "down_proj")
    hub_architecture: ClassVar[str | None] = "EomtDinov3ForUniversalSegmentation"
    default_theta: ClassVar[float] = 100.0

    intermediate_size: int = 4096
    rope_parameters: dict | None = None
    query_bias: bool = True
    key_bias: bool = False
    value_bias: bool = True
    proj_bias: bool = True
    mlp_bias: bool = True
    use_gated_mlp: bool = False
    pos_embed_shift: float | None = None
    pos_embed_jitter: float | None = None
    pos_embed_rescale: float | None = 2.0

    @property
    def gated_mlp(self) -> bool:
        return self.use_gated_mlp

    @property
    def gate_activation(self) -> str:
        return self.hidden_act  # as the built-in has it

    @property
    def mlp_width(self) -> int:
        return self.intermediate_size

    @property
    def attention_biases(self) -> dict[str, bool]:
        return {"query": self.query_bias, "key": self.key_bias, "value": self.value_bias, "output": self.proj_bias}

    @property
    def mlp_biased(self) -> bool:
        return self.mlp_bias

    @classmethod
    def _family_fields(cls, backbone: Backbone, overrides: dict[str, Any]) -> dict[str, Any]:
        width = overrides.get("hidden_size", backbone.width)
        return {
            "layerscale_value": backbone.layer_scale_init,
            "intermediate_size": 4 * width,
            "pos_embed_rescale": None,
        }

    def check_fields(self) -> None:
        super().check_fields()
        kind, theta = self.rope_parameters.get("rope_type", "default"), self.rope_parameters.get("rope_theta")
        if kind != "default":
            raise ValueError(f"rope_type is {kind!r}; DINOv3 knows only 'default'")
        if isinstance(theta, bool) or not isinstance(theta, (int, float)) or not 0 < theta < float("inf"):
            raise wrong("rope_theta", theta, "a positive number")


class EoMTEVA02Config(EoMTConfig):
    r"""EoMT on EVA-02, `model_type` "eomt_eva02": rotary and absolute positions, SwiGLU with a norm before its output
    projection, key projection without bias, no layer scale. Not in transformers.

    Args:
        rope_theta (`float`): base of the rotary frequencies.
        rope_reference_grid (`int`): patch coordinates are stretched to this grid's: that of pre-training, 224 / 14.
    """

    model_type = "eomt_eva02"
    layout: ClassVar[str] = "eva02"
    rope: ClassVar[Literal["dinov3", "eva02"] | None] = "eva02"
    class_token_has_position: ClassVar[bool] = True
    has_layer_scale: ClassVar[bool] = False
    has_mlp_norm: ClassVar[bool] = True
    hub_architecture: ClassVar[str | None] = None

    num_register_tokens: int = 0
    rope_theta: float = 10000.0
    rope_reference_grid: int = 16
    use_swiglu_ffn: bool = True

    @property
    def mlp_width(self) -> int:
        """Two thirds of 4 · D, not rounded (EVA-02-L: 2730)."""
        return int(self.hidden_size * self.mlp_ratio * 2 / 3)

    @property
    def attention_biases(self) -> dict[str, bool]:
        return {"query": True, "key": False, "value": True, "output": True}

    @classmethod
    def _family_fields(cls, backbone: Backbone, overrides: dict[str, Any]) -> dict[str, Any]:
        return {}


EoMTConfig.class_of_family = {
    "dinov2": EoMTConfig,
    "deit3": EoMTConfig,
    "dinov3": EoMTDINOv3Config,
    "eva02": EoMTEVA02Config,
}
