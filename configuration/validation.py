"""What the fields of a configuration may hold: their types by the annotations, their ranges, and what goes together.

Every message has one form: FIELD is VALUE; it must be WHAT.
"""

import types
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

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
DTYPES = ("float16", "bfloat16", "float32", "float64")


def as_pair(size) -> tuple[int, int]:
    """A side, or (height, width), in pixels → (height, width)."""
    return (size, size) if isinstance(size, int) else tuple(size)


def parse_size(*texts: str, option: str = "--image-size") -> int | tuple[int, int]:
    """ "640", "480x640", or "480", "640" → a side, or (height, width), in pixels."""
    try:
        sides = [int(side) for text in texts for side in str(text).lower().replace("×", "x").split("x")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise ValueError(f"{option} {' '.join(map(str, texts))}: give a side in pixels, or HEIGHTxWIDTH")
    return sides[0] if len(sides) == 1 else tuple(sides)


def wrong(field: str, value: Any, wanted: str) -> ValueError:
    text = repr(value)
    return ValueError(f"{field} is {text if len(text) < 80 else text[:76] + ' …'}; it must be {wanted}")


def check_types(hints: Mapping[str, Any] | type, values: Mapping[str, Any]) -> None:
    """Raise `ValueError` where a value, as read from a json, is not of its field's type.

    Args:
        hints: {field: type}, or a dataclass.
    """
    if isinstance(hints, type):
        hints = _field_types(hints)
    for field, value in values.items():
        hint = hints.get(field)
        if field in ("dtype", "torch_dtype"):
            if isinstance(value, str) and value not in DTYPES:
                raise wrong(field, value, f"one of {', '.join(DTYPES)}")
            hint = str | None if isinstance(value, (str, int, float, list, dict)) else None
        if hint is not None and not _fits(value, hint):
            raise wrong(field, value, _describe(hint))


@cache
def _field_types(config_class: type) -> dict[str, Any]:
    """Field → its type; transformers writes some as strings."""
    torch = types.SimpleNamespace(dtype=object)  # named there, but not imported
    types_of = get_type_hints(config_class, localns={"torch": torch})
    return {field.name: types_of[field.name] for field in fields(config_class)} | {"num_labels": int | None}


def _members(hint) -> tuple:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _fits(value, hint) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, member) for member in arguments)
    if hint is None or hint is type(None):
        return value is None
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in arguments)
    if origin is list or origin is tuple:  # json knows only lists
        return isinstance(value, (list, tuple)) and all(_fits(item, arguments[0]) for item in value)
    if origin is dict:
        names = all(isinstance(key, str) or _fits(key, arguments[0]) for key in value) if isinstance(value, dict) else 0
        return bool(names) and all(_fits(item, arguments[1]) for item in value.values())
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return isinstance(value, hint) if isinstance(hint, type) else True


_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a string", dict: "an object"}


def _describe(hint) -> str:
    parts = []
    for member in _members(hint):
        origin = get_origin(member)
        if origin is Literal:
            parts.append("one of " + ", ".join(map(str, get_args(member))))
        elif origin in (list, tuple):
            parts.append("a list of " + _describe(get_args(member)[0]).split(" ", 1)[-1] + "s")
        elif origin is dict:
            parts.append("an object")
        else:
            parts.append("null" if member is type(None) else _NAMES.get(member, getattr(member, "__name__", "a value")))
    parts = list(dict.fromkeys(parts))
    return " or ".join(parts)


def validate(config) -> None:
    """Check the fields of an `EoMTConfig`; `ValueError` with the field, its value and the fix."""
    if config.task not in TASKS:
        raise wrong("task", config.task, f"one of {', '.join(TASKS)}")
    check_types(
        type(config), {name: value for name, value in vars(config).items() if name not in ("dtype", "id2label")}
    )
    for field in RANGES.keys() & _field_types(type(config)).keys():
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
                f"image_size {config.image_size} is no multiple of patch_size {config.patch_size}; try {nearest}"
            )
