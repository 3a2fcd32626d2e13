"""The three configurations of EoMT and the ranges of their fields. Field names are those of the hub."""

from typing import Any, ClassVar

from transformers.configuration_utils import PreTrainedConfig

from .checkpoint import HUB_ARGUMENTS, applicable_stuff, checkpoint_stuff, checkpoint_task, new_labels, read_beside
from .families import DINOV3, EVA02, VIT, Backbone, Layout, find_backbone
from .field_types import check_types, field_types, wrong
from .sizes import as_pair
from .tasks import TASK_ROWS, TASKS, Task

# Lowest and highest value of each field. Values above the highest would only fill the memory.
RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("hidden_size", "intermediate_size", "encoder_feedforward_dim", "dim_feedforward"), (1, 2**18)),
    **dict.fromkeys(("num_hidden_layers", "num_blocks", "num_channels"), (1, 1000)),
    **dict.fromkeys(("encoder_layers", "deform_num_points"), (1, 100)),
    **dict.fromkeys(("num_attention_heads", "decoder_attention_heads", "stem_width"), (1, 2**12)),
    **dict.fromkeys(("num_labels", "train_num_points"), (1, 10_000_000)),
    **dict.fromkeys(("num_queries", "rope_reference_grid"), (1, 100_000)),
    **dict.fromkeys(("hidden_dropout_prob", "attention_dropout", "drop_path_rate", "importance_sample_ratio"), (0, 1)),
    **dict.fromkeys(("no_object_weight", "class_weight", "mask_weight", "dice_weight"), (0, 1e6)),
    **dict.fromkeys(("oversample_ratio", "pos_embed_jitter", "pos_embed_rescale"), (1, 1000)),
    **dict.fromkeys(("initializer_range", "conv_ffn_ratio", "pos_embed_shift"), (0, 1000)),
    "feature_size": (32, 2**14),
    "num_upscale_blocks": (1, 8),
    "num_register_tokens": (0, 10_000),
    "mlp_ratio": (1e-3, 1000),
    "deform_ratio": (0, 1),
    "layer_norm_eps": (0, 1),
    "layerscale_value": (-1e6, 1e6),
    "rope_theta": (1e-6, 1e12),
}
LONGEST_IMAGE_SIDE = 2**15  # pixels
INFERRED = "task_is_inferred"
"""Attribute of a configuration loaded from a file without a task; not saved."""
ACTIVATIONS = ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu", "swish", "tanh")


class EoMTConfig(PreTrainedConfig):
    r"""Configuration of EoMT on a DINOv2 (with registers) or DeiT-III backbone, `model_type` "eomt".

    The fields of transformers' `EomtConfig` have the same names and defaults here, so that files fit both. Additional
    fields:

    Args:
        task (`str`): "panoptic", "instance" or "semantic", the default of the image processor and the pipeline.
        stuff_label_ids (`list[int]`): labels with at most one segment per image (panoptic).
        dataset_ids (`dict[str, int]`): {class name: id in the files of the data set}, for the results of
            `eomt predict`. Keys are names, so that new classes do not take over the ids of old ones.
        masked_attention (`bool`): train with masked attention and supervise its intermediate predictions. False is
            the row "never" of Table 7: only the last prediction exists.
        masked_inference (`bool`): also infer with the masks of `attn_mask_probs`, for models trained with masks to the
            end (the row "always" of Table 7). False for checkpoints without this field.

    Raises:
        ValueError: on construction, when a field is out of range or two fields contradict each other.
    """

    model_type = "eomt"

    # Constants of the class, not fields.
    layout: ClassVar[Layout] = VIT
    class_of_layout: ClassVar[dict[str, type["EoMTConfig"]]] = {}  # filled after the definition of the subclasses
    blocks_are_the_encoders: ClassVar[bool] = True  # whether the `num_blocks` blocks with queries are encoder blocks
    # Excluded from the stock Trainer's predictions: they exist in some steps only and would shift the others.
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["auxiliary_logits", "loss_dict"]

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
    stuff_label_ids: list[int] | tuple[int, ...] | None = ()
    dataset_ids: dict[str, int] | None = None
    masked_attention: bool = True
    masked_inference: bool = False

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.stuff_label_ids = [int(label) for label in self.stuff_label_ids or ()]
        self.check_fields()

    def __setattr__(self, name: str, value: Any) -> None:
        """Keep only the applicable stuff labels when labels are replaced later (`config.num_labels = 3`)."""
        if name == "id2label" and value is not None and self.__dict__.get("stuff_label_ids"):
            self.stuff_label_ids = applicable_stuff(self.stuff_label_ids, self.id2label, value)
        super().__setattr__(name, value)

    # --- derived, never stored -------------------------------------------------------------------------------------

    @property
    def grid_size(self) -> tuple[int, int]:
        """Patches (down, across) of an image of `image_size`."""
        (height, width), (patch_height, patch_width) = as_pair(self.image_size), as_pair(self.patch_size)
        return height // patch_height, width // patch_width

    @property
    def resamples_positions(self) -> bool:
        """Whether learned positions are resampled for images of another size than `image_size`."""
        return self.layout.has_position_embeddings

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
        """Whether each of the four attention projections has a bias."""
        return {"query": True, "key": True, "value": True, "output": True}

    @property
    def mlp_biased(self) -> bool:
        return True

    # --- construction ----------------------------------------------------------------------------------------------

    @classmethod
    def for_backbone(cls, name: str, image_size=640, task: Task = "panoptic", **overrides: Any) -> "EoMTConfig":
        """Configuration for a backbone, with the paper's L2 and number of queries (Appendix A.1).

        Args:
            name: a row of `BACKBONES`, by the name of timm (with or without pre-training tag) or of the hub.
            image_size: side or (height, width) in pixels; a multiple of 16.
            task: 200 queries for panoptic and instance, 100 for semantic (Section 4.1).
            **overrides: any field; `hidden_size` and other sizes make a scaled model of the same family.

        Raises:
            ValueError: when the backbone is unknown or a field is out of range.
        """
        backbone = find_backbone(name)
        config_class = cls.class_of_layout[backbone.layout.name]
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
            "num_queries": TASK_ROWS[task].num_queries if task in TASK_ROWS else 200,
            **config_class._family_fields(backbone, overrides),
        }
        fields["num_upscale_blocks"] = upscale_blocks(overrides.get("patch_size", fields["patch_size"]))
        return config_class(**{**fields, **overrides})

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs) -> tuple[dict[str, Any], dict[str, Any]]:
        hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        fields, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        return fields, {"checkpoint": (str(pretrained_model_name_or_path), hub), **kwargs}

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """Construct from a dictionary, as transformers does. Infers the task and the stuff classes for hub files."""
        given = {name: kwargs.pop(name) for name in ("task", "stuff_label_ids") if kwargs.get(name) is not None}
        path, hub = kwargs.pop("checkpoint", (kwargs.get("name_or_path"), {}))  # AutoConfig passes name_or_path
        fields = {**config_dict, **given}
        if fields.get("task") is None:
            hub = {**hub, "revision": fields.get("_commit_hash") or hub.get("revision")}
            processor = read_beside(path, "preprocessor_config.json", **hub)
            fields["task"] = checkpoint_task(fields, fields, processor, path)
            fields[INFERRED] = True
        labels = new_labels(fields.get("id2label"), kwargs)
        if labels is not None:
            if "stuff_label_ids" not in given and fields.get("stuff_label_ids"):
                old = fields["id2label"] if fields.get("id2label") else {}
                fields["stuff_label_ids"] = applicable_stuff(fields["stuff_label_ids"], old, labels)
            fields["id2label"] = labels
            fields["label2id"] = kwargs.pop("label2id", None) or {name: label for label, name in labels.items()}
        if fields.get("stuff_label_ids") is None:
            fields["stuff_label_ids"] = checkpoint_stuff(fields, fields["task"]) or []
        check_types(cls, fields)
        return super().from_dict(fields, **kwargs)

    @classmethod
    def _family_fields(cls, backbone: Backbone, overrides: dict[str, Any]) -> dict[str, Any]:
        return {"layerscale_value": backbone.layer_scale_init, "use_swiglu_ffn": backbone.swiglu}

    def check_fields(self) -> None:
        """Raise a `ValueError` with the field, its value and the fix."""
        if self.task not in TASKS:
            raise wrong("task", self.task, f"one of {', '.join(TASKS)}")
        values = {name: value for name, value in vars(self).items() if name not in ("dtype", "id2label")}
        check_types(type(self), values)
        for field in RANGES.keys() & field_types(type(self)).keys():
            value, (low, high) = getattr(self, field), RANGES[field]
            if value is not None and not low <= value <= high:
                raise wrong(field, value, f"between {low:g} and {high:g}")
        if self.hidden_act not in ACTIVATIONS:
            raise wrong("hidden_act", self.hidden_act, f"one of {', '.join(ACTIVATIONS)}")
        _check_labels(self)
        if self.blocks_are_the_encoders and self.num_blocks > self.num_hidden_layers:
            raise wrong("num_blocks", self.num_blocks, f"at most num_hidden_layers, {self.num_hidden_layers}")
        if self.hidden_size % self.num_attention_heads:
            heads = self.num_attention_heads
            raise wrong("hidden_size", self.hidden_size, f"a multiple of num_attention_heads, {heads}")
        if self.layout.rope is not None and (self.hidden_size // self.num_attention_heads) % 4:
            raise wrong("hidden_size", self.hidden_size, "such that heads of it are a multiple of 4 (rotary positions)")
        _check_sizes(self)

    def to_dict(self) -> dict[str, Any]:
        """Dictionary of the fields. `architectures` names transformers' own class, so that it loads our files."""
        fields = super().to_dict()
        fields.pop(INFERRED, None)
        for name in ("image_size", "patch_size"):  # plain transformers divides them
            if isinstance(fields.get(name), (list, tuple)) and len(set(fields[name])) == 1:
                fields[name] = fields[name][0]
        if isinstance(fields.get("mlp_ratio"), float) and fields["mlp_ratio"].is_integer():
            fields["mlp_ratio"] = int(fields["mlp_ratio"])
        if fields.get("architectures") and self.hub_class is not None:
            fields["architectures"] = [
                self.hub_class if name == "EoMTForUniversalSegmentation" else name for name in fields["architectures"]
            ]
        return fields

    @property
    def hub_class(self) -> str | None:
        """Class of plain transformers for a checkpoint of this configuration, or None."""
        return self.layout.hub_class

    @property
    def plain_transformers_lacks(self) -> str | None:
        """The reason why transformers without this package cannot load such a model; None if it can."""
        if self.hub_class is None:
            return f"it has no {self.model_type}"
        for field in ("image_size", "patch_size"):
            height, width = as_pair(getattr(self, field))
            if height != width:
                return f"it needs square images and patches; {field} is {height} × {width}"
        if isinstance(self.mlp_ratio, float) and not self.mlp_ratio.is_integer():
            return f"it needs an integer mlp_ratio, not {self.mlp_ratio}"
        return None

    @classmethod
    def register_for_auto_class(cls, auto_class="AutoConfig"):
        raise code_upload_refused()


class EoMTDINOv3Config(EoMTConfig):
    r"""EoMT on DINOv3, `model_type` "eomt_dinov3": rotary positions only, key projection without bias.

    Fields and defaults are those of transformers' `EomtDinov3Config`. By default they include `pos_embed_rescale`
    (random rescaling of the patch coordinates in training). The authors train without it, so `for_backbone` omits it.
    """

    model_type = "eomt_dinov3"
    layout: ClassVar[Layout] = DINOV3
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
        return self.hidden_act  # as in transformers

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
        kept = 2 / 3 if backbone.swiglu else 1
        return {
            "layerscale_value": backbone.layer_scale_init,
            "intermediate_size": round(backbone.mlp_ratio * kept * overrides.get("hidden_size", backbone.width)),
            "use_gated_mlp": backbone.swiglu,
            "hidden_act": "silu" if backbone.swiglu else "gelu",
            "query_bias": backbone.qkv_biased,
            "value_bias": backbone.qkv_biased,
            "pos_embed_rescale": None,
        }

    def check_fields(self) -> None:
        super().check_fields()
        kind, theta = self.rope_parameters.get("rope_type", "default"), self.rope_parameters.get("rope_theta")
        if kind != "default":
            raise wrong("rope_type", kind, "'default' for DINOv3")
        if isinstance(theta, bool) or not isinstance(theta, (int, float)) or not 0 < theta < float("inf"):
            raise wrong("rope_theta", theta, "a positive number")


class EoMTEVA02Config(EoMTConfig):
    r"""EoMT on EVA-02, `model_type` "eomt_eva02": rotary and absolute positions, SwiGLU with a norm before its output
    projection, key projection without bias, no layer scale. Not in transformers.

    Args:
        rope_theta (`float`): base of the rotary frequencies.
        rope_reference_grid (`int`): patch coordinates are scaled to this grid, that of pre-training: 224 / 14.
    """

    model_type = "eomt_eva02"
    layout: ClassVar[Layout] = EVA02

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


EoMTConfig.class_of_layout = {kind.layout.name: kind for kind in (EoMTConfig, EoMTDINOv3Config, EoMTEVA02Config)}


def _check_labels(config) -> None:
    if sorted(config.id2label) != list(range(config.num_labels)):
        raise wrong("id2label", config.id2label, f"an object with the keys 0 to {config.num_labels - 1}")
    ids = list((config.dataset_ids or {}).values())
    if len(set(ids)) < len(ids) or not all(0 <= i < 2**63 for i in ids):
        raise wrong("dataset_ids", config.dataset_ids, "an object with a distinct id, 0 or more, for each class name")
    outside = [label for label in config.stuff_label_ids if not 0 <= label < config.num_labels]
    if outside:
        raise ValueError(
            f"stuff_label_ids {outside} are outside the {config.num_labels} labels (0 to {config.num_labels - 1})"
        )


def _check_sizes(config) -> None:
    for field in ("image_size", "patch_size"):
        value = getattr(config, field)
        sides = value if isinstance(value, (list, tuple)) else (value, value)
        integers = all(isinstance(side, int) and not isinstance(side, bool) for side in sides)
        if len(sides) != 2 or not integers or not all(0 < side <= LONGEST_IMAGE_SIDE for side in sides):
            raise wrong(field, value, f"a side in pixels, or (height, width), from 1 to {LONGEST_IMAGE_SIDE}")
    for side, patch in zip(as_pair(config.image_size), as_pair(config.patch_size)):
        if side % patch:
            nearest = max(patch, round(side / patch) * patch)
            raise ValueError(
                f"image_size {config.image_size} is not a multiple of patch_size {config.patch_size}; try {nearest}"
            )


def code_upload_refused() -> ValueError:
    """The error for uploads of custom code: transformers would copy single files, without the package they import."""
    return ValueError(
        "custom code cannot be uploaded with a checkpoint of this package; leave out register_for_auto_class. The "
        "checkpoint loads in plain transformers if it has the model, and always with this package"
    )


def upscale_blocks(patch_size) -> int:
    """Number of blocks that double the resolution of the patch features, up to a quarter of that of the image.

    max(1, ⌊log2 patch⌋ − 2): 2 for a patch of 16 pixels, 1 for 14 and 8 (authors' code).
    """
    return max(1, int(min(as_pair(patch_size))).bit_length() - 1 - 2)
