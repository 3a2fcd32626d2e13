"""What the fields of a configuration may hold: their ranges, and what goes together."""

from .field_types import check_types, field_types, wrong
from .sizes import as_pair
from .tasks import TASKS

# Field → lowest and highest value. The upper ends only catch slips: beyond them building a model takes all memory.
RANGES: dict[str, tuple[float, float]] = {
    "hidden_size": (1, 2**16),
    "intermediate_size": (1, 2**18),
    "num_hidden_layers": (1, 1000),
    "num_attention_heads": (1, 2**12),
    "num_channels": (1, 1000),
    "num_blocks": (1, 1000),
    "feature_size": (32, 2**14),
    "decoder_attention_heads": (1, 2**10),
    "encoder_layers": (1, 100),
    "encoder_feedforward_dim": (1, 2**16),
    "dim_feedforward": (1, 2**16),
    "stem_width": (1, 2**12),
    "deform_num_points": (1, 100),
    "deform_ratio": (0, 1),
    "conv_ffn_ratio": (0, 100),
    "num_upscale_blocks": (1, 8),
    "num_queries": (1, 100_000),
    "num_labels": (1, 1_000_000),
    "num_register_tokens": (0, 10_000),
    "train_num_points": (1, 10_000_000),
    "rope_reference_grid": (1, 10_000),
    "mlp_ratio": (1e-3, 1000),
    "initializer_range": (0, 1000),
    "layer_norm_eps": (0, 1),
    "layerscale_value": (-1e6, 1e6),
    "rope_theta": (1e-6, 1e12),
    "hidden_dropout_prob": (0, 1),
    "attention_dropout": (0, 1),
    "drop_path_rate": (0, 1),
    "importance_sample_ratio": (0, 1),
    "oversample_ratio": (1, 1000),
    "no_object_weight": (0, 1e6),
    "class_weight": (0, 1e6),
    "mask_weight": (0, 1e6),
    "dice_weight": (0, 1e6),
    "pos_embed_shift": (0, 1e3),
    "pos_embed_jitter": (1, 1e3),
    "pos_embed_rescale": (1, 1e3),
}
LONGEST_IMAGE_SIDE = 2**15  # pixels
ACTIVATIONS = ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu", "swish", "tanh")


def validate(config) -> None:
    """Check the fields of an `EoMTConfig`; `ValueError` with the field, its value and the fix."""
    if config.task not in TASKS:
        raise wrong("task", config.task, f"one of {', '.join(TASKS)}")
    check_types(
        type(config), {name: value for name, value in vars(config).items() if name not in ("dtype", "id2label")}
    )
    for field in RANGES.keys() & field_types(type(config)).keys():
        value, (low, high) = getattr(config, field), RANGES[field]
        if value is not None and not low <= value <= high:
            raise wrong(field, value, f"between {low:g} and {high:g}")
    if config.hidden_act not in ACTIVATIONS:
        raise wrong("hidden_act", config.hidden_act, f"one of {', '.join(ACTIVATIONS)}")
    _validate_labels(config)
    if config.blocks_are_the_encoders and config.num_blocks > config.num_hidden_layers:
        raise ValueError(
            f"num_blocks is {config.num_blocks}, more than the {config.num_hidden_layers} of num_hidden_layers; "
            "it counts the last blocks, those that see the queries"
        )
    if config.hidden_size % config.num_attention_heads:
        raise ValueError(
            f"hidden_size {config.hidden_size} is not divisible by num_attention_heads {config.num_attention_heads}"
        )
    if config.rope is not None and (config.hidden_size // config.num_attention_heads) % 4:
        raise ValueError(
            f"hidden_size / num_attention_heads is {config.hidden_size // config.num_attention_heads}; "
            "rotary position embeddings need a multiple of 4"
        )
    _validate_sizes(config)


def _validate_labels(config) -> None:
    if sorted(config.id2label) != list(range(config.num_labels)):
        raise wrong("id2label", config.id2label, f"an object with the keys 0 to {config.num_labels - 1}")
    ids = list((config.dataset_ids or {}).values())
    if len(set(ids)) < len(ids) or not all(0 <= i < 2**63 for i in ids):
        raise wrong("dataset_ids", config.dataset_ids, "an object: class name → an id of its own, 0 or more")
    outside = [label for label in config.stuff_label_ids if not 0 <= label < config.num_labels]
    if outside:
        raise ValueError(
            f"stuff_label_ids {outside} lie outside the {config.num_labels} labels (0 to {config.num_labels - 1})"
        )


def _validate_sizes(config) -> None:
    for field in ("image_size", "patch_size"):
        value = getattr(config, field)
        sides = value if isinstance(value, (list, tuple)) else (value, value)
        whole = all(isinstance(side, int) and not isinstance(side, bool) for side in sides)
        if len(sides) != 2 or not whole or not all(0 < side <= LONGEST_IMAGE_SIDE for side in sides):
            raise wrong(field, value, f"a side in pixels, or (height, width), from 1 to {LONGEST_IMAGE_SIDE}")
    for side, patch in zip(as_pair(config.image_size), as_pair(config.patch_size)):
        if side % patch:
            nearest = max(patch, round(side / patch) * patch)
            raise ValueError(
                f"image_size {config.image_size} is not a multiple of patch_size {config.patch_size}; try {nearest}"
            )
