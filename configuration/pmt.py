"""`PMTConfig`: the Plain Mask Transformer, EoMT's queries in a decoder on a frozen ViT (arXiv 2603.25398)."""

from math import ceil
from typing import Any, ClassVar

from .eomt import EoMTConfig, EoMTDINOv3Config, upscale_blocks
from .field_types import check_types, wrong
from .tasks import TASK_ROWS, Task

LATERAL_PROJECTIONS = ("mlp", "linear", "identity")
LEVELS = 4
# Fields of the decoder with the values of the encoder.
SHARED = ("hidden_size", "num_attention_heads", "num_register_tokens", "num_channels")
# Overrides in `for_backbone` that are fields of the encoder.
ENCODER_FIELDS = (*SHARED, "num_hidden_layers", "mlp_ratio", "intermediate_size", "patch_size")


class PMTConfig(EoMTDINOv3Config):
    r"""Configuration of PMT, `model_type` "pmt": a frozen ViT of any family and a decoder of DINOv3's blocks.

    The fields of `EoMTDINOv3Config` describe the decoder, the queries, the labels and the losses. Width, heads,
    registers and channels are those of the encoder. Additional fields:

    Args:
        encoder_config (`EoMTConfig` or `dict`): configuration of the ViT; DINOv3-L by default.
        num_blocks (`int`): decoder blocks.
        interaction_indices (`list[int]`): encoder blocks, from 0 and ascending. The decoder reads their normalized
            outputs. By default those at a quarter, half, three quarters and the end of the depth.
        lateral_projection (`str`): projection added to each of these outputs: "mlp", "linear" or "identity".
        lateral_batch_norm (`bool`): whether each of these outputs is normalized first.
        encoder_name, encoder_revision (`str`): the encoder's name in `BACKBONES`, and the commit of the hub's weights.
        encoder_digest (`str`): fingerprint of the encoder's weights. Only checkpoints of the decoder alone have it.

    Raises:
        ValueError: on construction, when a field is out of range or two fields contradict each other.
    """

    model_type = "pmt"
    sub_configs: ClassVar[dict[str, type]] = {"encoder_config": EoMTConfig}
    blocks_are_the_encoders: ClassVar[bool] = False
    hub_class = None  # transformers has no such model

    encoder_config: dict | EoMTConfig | None = None
    image_size: int | list[int] | tuple[int, int] | None = None
    patch_size: int | list[int] | tuple[int, int] | None = None
    num_blocks: int = 6
    layer_norm_eps: float = 1e-5
    pos_embed_rescale: float | None = None
    interaction_indices: list[int] | tuple[int, ...] | None = None
    lateral_projection: str = "mlp"
    lateral_batch_norm: bool = True
    encoder_name: str | None = None
    encoder_revision: str | None = None
    encoder_digest: str | None = None

    def __post_init__(self, **kwargs):
        encoder = EoMTDINOv3Config() if self.encoder_config is None else _encoder_from(self.encoder_config)
        self.encoder_config = encoder
        self.image_size = encoder.image_size if self.image_size is None else self.image_size
        self.patch_size = encoder.patch_size if self.patch_size is None else self.patch_size
        if self.num_channels not in (type(self).num_channels, encoder.num_channels):
            raise wrong("num_channels", self.num_channels, f"{encoder.num_channels}, those of the encoder")
        for name in SHARED:
            setattr(self, name, getattr(encoder, name))
        self.intermediate_size = self.hidden_size
        self.num_hidden_layers = self.num_blocks
        if encoder.layout.rope == "dinov3":
            self.rope_parameters = dict(encoder.rope_parameters)
        if self.interaction_indices is None:
            ends = {ceil(encoder.num_hidden_layers * level / LEVELS) for level in range(1, LEVELS + 1)}
            self.interaction_indices = [end - 1 for end in sorted(ends)]
        super().__post_init__(**kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        """Keep the image and patch size of the encoder, and the channels of the decoder, equal to the other's."""
        encoder = self.__dict__.get("encoder_config")
        if name == "num_channels" and isinstance(encoder, EoMTConfig) and value != encoder.num_channels:
            raise wrong(name, value, f"{encoder.num_channels}, those of the encoder")
        super().__setattr__(name, value)
        if name in ("image_size", "patch_size") and isinstance(encoder, EoMTConfig) and value is not None:
            setattr(encoder, name, value)

    @property
    def resamples_positions(self) -> bool:
        return self.encoder_config.resamples_positions

    @classmethod
    def for_backbone(cls, name: str, image_size=640, task: Task = "panoptic", **overrides: Any) -> "PMTConfig":
        """Configuration for a frozen backbone; see `EoMTConfig.for_backbone`.

        Args:
            **overrides: any field; `hidden_size`, `num_hidden_layers` and other sizes make a scaled encoder.

        Raises:
            ValueError: when the backbone is unknown or a field is out of range.
        """
        encoder_fields = {field: overrides.pop(field) for field in ENCODER_FIELDS if field in overrides}
        encoder = EoMTConfig.for_backbone(name, image_size, **encoder_fields)
        fields = {
            "task": task,
            "num_queries": TASK_ROWS[task].num_queries if task in TASK_ROWS else 200,
            "num_upscale_blocks": upscale_blocks(encoder.patch_size),
            "encoder_name": name,
        }
        return cls(encoder_config=encoder, **{**fields, **overrides})

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        if config_dict.get("encoder_config") is None:
            raise wrong("encoder_config", None, "a dictionary of the encoder's fields")
        return super().from_dict(config_dict, **kwargs)

    def check_fields(self) -> None:
        super().check_fields()
        depth, indices = self.encoder_config.num_hidden_layers, list(self.interaction_indices)
        if not indices or indices != sorted(set(indices)) or not 0 <= indices[0] <= indices[-1] < depth:
            wanted = f"ascending numbers of encoder blocks, from 0 to {depth - 1}"
            raise wrong("interaction_indices", indices, wanted)
        if self.lateral_projection not in LATERAL_PROJECTIONS:
            raise wrong("lateral_projection", self.lateral_projection, f"one of {', '.join(LATERAL_PROJECTIONS)}")


def _encoder_from(given: EoMTConfig | dict[str, Any]) -> EoMTConfig:
    """A configuration, or the dictionary in a file → the configuration of its family."""
    kinds = list(EoMTConfig.class_of_layout.values())
    if type(given) in kinds:
        return given
    if not isinstance(given, dict):
        raise wrong("encoder_config", given, "an EoMTConfig, or a dictionary of its fields")
    fields = dict(given)
    name = fields.pop("model_type", None)
    names = [kind.model_type for kind in kinds]
    if name not in names:
        raise wrong("encoder_config.model_type", name, f"one of {', '.join(names)}")
    kind = kinds[names.index(name)]
    try:
        check_types(kind, fields)
        return kind(**fields)
    except ValueError as error:
        raise ValueError(f"encoder_config: {error}") from None
