"""`EoMTConfig`: what an EoMT model is. Three model types, one encoder; the hub's field names are our field names."""

from typing import Any, ClassVar, Literal

from transformers.configuration_utils import PreTrainedConfig

from .backbones import Backbone, find_backbone

Task = Literal["panoptic", "instance", "semantic"]
TASKS: tuple[Task, ...] = ("panoptic", "instance", "semantic")


def as_pair(size) -> tuple[int, int]:
    """A side, or (height, width), in pixels → (height, width)."""
    return (size, size) if isinstance(size, int) else tuple(size)


class EoMTConfig(PreTrainedConfig):
    r"""Configuration of EoMT on a DINOv2 (with registers) or DeiT-III backbone, `model_type` "eomt".

    Every field of transformers' `EomtConfig` is here under the same name and default, so that configurations travel
    between the two. Ours in addition:

    Args:
        task (`str`): "panoptic", "instance" or "semantic"; what the image processor and the pipeline do by default.
        stuff_label_ids (`list[int]`): labels that have one segment an image at the most (panoptic).
        masked_attention (`bool`): train with masked attention and supervise its intermediate predictions. False is
            the row "never" of Table 7: only the last prediction exists.

    Raises:
        ValueError: on construction, when a field is out of its range or two fields contradict each other.
    """

    model_type = "eomt"

    # What tells the families apart, for the encoder and for the hub's key names. Constants of the class, not fields.
    rope: ClassVar[Literal["dinov3", "eva02"] | None] = None
    has_position_embeddings: ClassVar[bool] = True
    class_token_has_position: ClassVar[bool] = False
    has_layer_scale: ClassVar[bool] = True
    has_mlp_norm: ClassVar[bool] = False
    patch_projection_name: ClassVar[str | None] = "projection"
    attention_output_name: ClassVar[str] = "out_proj"
    mlp_names: ClassVar[tuple[str, str]] = ("fc1", "fc2")

    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-6
    image_size: int | list[int] | tuple[int, int] = 640
    patch_size: int | list[int] | tuple[int, int] = 16
    num_channels: int = 3
    mlp_ratio: int | float = 4
    layerscale_value: float = 1.0
    drop_path_rate: float | int = 0.0
    num_upscale_blocks: int = 2
    attention_dropout: float | int = 0.0
    use_swiglu_ffn: bool = False
    num_blocks: int = 4
    no_object_weight: float = 0.1
    class_weight: float = 2.0
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    train_num_points: int = 12544
    oversample_ratio: float = 3.0
    importance_sample_ratio: float = 0.75
    num_queries: int = 200
    num_register_tokens: int = 4
    task: str = "panoptic"
    stuff_label_ids: list[int] | tuple[int, ...] = ()
    masked_attention: bool = True

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.stuff_label_ids = [int(label) for label in self.stuff_label_ids]
        self._validate()

    # --- derived, never stored -------------------------------------------------------------------------------------

    @property
    def grid_size(self) -> tuple[int, int]:
        """Patches (down, across) of an image of `image_size`."""
        (height, width), (patch_height, patch_width) = as_pair(self.image_size), as_pair(self.patch_size)
        return height // patch_height, width // patch_width

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the patches: the class token and the registers."""
        return 1 + self.num_register_tokens

    @property
    def gated_mlp(self) -> bool:
        """Whether the MLP is a SwiGLU."""
        return self.use_swiglu_ffn

    @property
    def gate_activation(self) -> str:
        """Activation of the SwiGLU's gate."""
        return "silu"

    @property
    def mlp_width(self) -> int:
        """Hidden width of the MLP. SwiGLU keeps two thirds, rounded up to a multiple of 8 (DINOv2-g: 4096)."""
        width = int(self.hidden_size * self.mlp_ratio)
        return (int(width * 2 / 3) + 7) // 8 * 8 if self.use_swiglu_ffn else width

    @property
    def attention_biases(self) -> dict[str, bool]:
        """Which of the four attention projections are biased."""
        return {"query": True, "key": True, "value": True, "output": True}

    @property
    def mlp_biased(self) -> bool:
        return True

    # --- construction ----------------------------------------------------------------------------------------------

    @classmethod
    def for_backbone(cls, name: str, image_size=640, task: Task = "panoptic", **overrides: Any) -> "EoMTConfig":
        """Backbone name → configuration of the right class, with the paper's L2 and query count (Appendix A.1).

        Args:
            name: timm's name, the pre-training tag optional, or the hub's; a row of `BACKBONES`.
            image_size: side, or (height, width), in pixels; a multiple of 16.
            task: 200 queries for panoptic and instance, 100 for semantic (Section 4.1).
            **overrides: any field; `hidden_size` and friends give a scaled model of the same family.

        Raises:
            ValueError: when the backbone is unknown or a field is out of its range.
        """
        backbone = find_backbone(name)
        config_class = CONFIG_OF_FAMILY[backbone.family]
        depth = overrides.get("num_hidden_layers", backbone.depth)
        fields = {
            "hidden_size": backbone.width,
            "num_hidden_layers": backbone.depth,
            "num_attention_heads": backbone.heads,
            "layer_norm_eps": backbone.layer_norm_eps,
            "num_register_tokens": backbone.num_register_tokens,
            "patch_size": 16,
            "image_size": image_size,
            "task": task,
            "num_blocks": min(backbone.num_blocks, depth) if isinstance(depth, int) else backbone.num_blocks,
            "num_queries": 100 if task == "semantic" else 200,
            **config_class._family_fields(backbone, overrides),
        }
        fields["num_upscale_blocks"] = upscale_blocks(overrides.get("patch_size", fields["patch_size"]))
        return config_class(**{**fields, **overrides})

    @classmethod
    def _family_fields(cls, backbone: Backbone, overrides: dict[str, Any]) -> dict[str, Any]:
        return {"layerscale_value": backbone.layer_scale_init, "use_swiglu_ffn": backbone.swiglu}

    def to_dict(self) -> dict[str, Any]:
        """Like transformers', but `architectures` names the built-in's class: plain transformers loads what we save."""
        fields = super().to_dict()
        if fields.get("architectures") and self.hub_architecture is not None:
            fields["architectures"] = [
                self.hub_architecture if name == "EoMTForUniversalSegmentation" else name
                for name in fields["architectures"]
            ]
        return fields

    hub_architecture: ClassVar[str | None] = "EomtForUniversalSegmentation"

    # --- validation ------------------------------------------------------------------------------------------------

    def _validate(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"task is {self.task!r}; choose from {', '.join(TASKS)}")
        positive = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_channels", "num_blocks",
                    "num_upscale_blocks", "num_queries", "train_num_points", "num_labels")  # fmt: skip
        for field in positive:
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{field} is {value!r}; it must be a positive whole number")
        if not isinstance(self.num_register_tokens, int) or self.num_register_tokens < 0:
            raise ValueError(f"num_register_tokens is {self.num_register_tokens!r}; it must be 0 or more")
        if self.num_blocks > self.num_hidden_layers:
            raise ValueError(
                f"num_blocks is {self.num_blocks}, more than the {self.num_hidden_layers} of num_hidden_layers; "
                "it counts the last blocks, those that see the queries"
            )
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not divisible by num_attention_heads {self.num_attention_heads}"
            )
        if self.rope is not None and (self.hidden_size // self.num_attention_heads) % 4:
            raise ValueError(
                f"hidden_size / num_attention_heads is {self.hidden_size // self.num_attention_heads}; "
                "rotary position embeddings need a multiple of 4"
            )
        self._validate_sizes()
        for field in ("hidden_dropout_prob", "attention_dropout", "drop_path_rate", "importance_sample_ratio"):
            if not 0 <= getattr(self, field) <= 1:
                raise ValueError(f"{field} is {getattr(self, field)!r}; it must lie in [0, 1]")
        if self.oversample_ratio < 1:
            raise ValueError(f"oversample_ratio is {self.oversample_ratio!r}; it must be 1 or more")
        for field in ("no_object_weight", "class_weight", "mask_weight", "dice_weight"):
            if getattr(self, field) < 0:
                raise ValueError(f"{field} is {getattr(self, field)!r}; it must not be negative")
        outside = [label for label in self.stuff_label_ids if not 0 <= label < self.num_labels]
        if outside:
            raise ValueError(
                f"stuff_label_ids {outside} lie outside the {self.num_labels} labels (0 to {self.num_labels - 1})"
            )

    def _validate_sizes(self) -> None:
        for field in ("image_size", "patch_size"):
            value = getattr(self, field)
            sides = (value,) if isinstance(value, int) else tuple(value) if isinstance(value, (list, tuple)) else ()
            if len(sides) not in (1, 2) or not all(isinstance(side, int) and side > 0 for side in sides) or (
                len(sides) == 1 and not isinstance(value, int)
            ):  # fmt: skip
                raise ValueError(f"{field} is {value!r}; it must be a side in pixels, or (height, width)")
        for side, patch in zip(as_pair(self.image_size), as_pair(self.patch_size)):
            if side % patch:
                nearest = max(patch, round(side / patch) * patch)
                raise ValueError(
                    f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}; try {nearest}"
                )


class EoMTDINOv3Config(EoMTConfig):
    r"""EoMT on DINOv3, `model_type` "eomt_dinov3": rotary positions only, key projection without bias.

    Fields, names and defaults as transformers' `EomtDinov3Config`. `pos_embed_rescale` (random rescaling of the patch
    coordinates in training) is on by default there; the authors' code trains without it, and so does `for_backbone`.
    """

    model_type = "eomt_dinov3"
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

    def _validate(self) -> None:
        super()._validate()
        if not isinstance(self.intermediate_size, int) or self.intermediate_size < 1:
            raise ValueError(f"intermediate_size is {self.intermediate_size!r}; it must be a positive whole number")
        kind = self.rope_parameters.get("rope_type", "default")
        if kind != "default":
            raise ValueError(f"rope_type is {kind!r}; DINOv3 knows only 'default'")


class EoMTEVA02Config(EoMTConfig):
    r"""EoMT on EVA-02, `model_type` "eomt_eva02": rotary and absolute positions, SwiGLU with a norm before its output
    projection, key projection without bias, no layer scale. Not in transformers.

    Args:
        rope_theta (`float`): base of the rotary frequencies.
        rope_reference_grid (`int`): patch coordinates are stretched to this grid's: that of pre-training, 224 / 14.
    """

    model_type = "eomt_eva02"
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


CONFIG_OF_FAMILY: dict[str, type[EoMTConfig]] = {
    "dinov2": EoMTConfig,
    "deit3": EoMTConfig,
    "dinov3": EoMTDINOv3Config,
    "eva02": EoMTEVA02Config,
}


def upscale_blocks(patch_size) -> int:
    """Patch size in pixels → blocks that each double the resolution of the patch features, to a quarter of the image's.

    max(1, ⌊log2 patch⌋ − 2): 2 for 16, 1 for 14 and 8 (authors' code).
    """
    return max(1, int(min(as_pair(patch_size))).bit_length() - 1 - 2)
