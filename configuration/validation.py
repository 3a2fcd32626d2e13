"""What fields of a configuration may hold, and together."""

from typing import Literal

Task = Literal["panoptic", "instance", "semantic"]
TASKS: tuple[Task, ...] = ("panoptic", "instance", "semantic")


def as_pair(size) -> tuple[int, int]:
    """A side, or (height, width), in pixels → (height, width)."""
    return (size, size) if isinstance(size, int) else tuple(size)


def validate(config) -> None:
    """Check the fields of an `EoMTConfig`; `ValueError` with the field, its value and the fix."""
    if config.task not in TASKS:
        raise ValueError(f"task is {config.task!r}; choose from {', '.join(TASKS)}")
    positive = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_channels", "num_blocks",
                "num_upscale_blocks", "num_queries", "train_num_points", "num_labels")  # fmt: skip
    for field in positive:
        value = getattr(config, field)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{field} is {value!r}; it must be a positive whole number")
    if not isinstance(config.num_register_tokens, int) or config.num_register_tokens < 0:
        raise ValueError(f"num_register_tokens is {config.num_register_tokens!r}; it must be 0 or more")
    if config.num_blocks > config.num_hidden_layers:
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
    _validate_dataset_ids(config.dataset_ids)
    for field in ("hidden_dropout_prob", "attention_dropout", "drop_path_rate", "importance_sample_ratio"):
        if not 0 <= getattr(config, field) <= 1:
            raise ValueError(f"{field} is {getattr(config, field)!r}; it must lie in [0, 1]")
    if config.oversample_ratio < 1:
        raise ValueError(f"oversample_ratio is {config.oversample_ratio!r}; it must be 1 or more")
    for field in ("no_object_weight", "class_weight", "mask_weight", "dice_weight"):
        if getattr(config, field) < 0:
            raise ValueError(f"{field} is {getattr(config, field)!r}; it must not be negative")
    outside = [label for label in config.stuff_label_ids if not 0 <= label < config.num_labels]
    if outside:
        raise ValueError(
            f"stuff_label_ids {outside} lie outside the {config.num_labels} labels (0 to {config.num_labels - 1})"
        )


def _validate_dataset_ids(ids) -> None:
    if ids is not None and not (
        isinstance(ids, dict)
        and all(isinstance(name, str) and type(i) is int and 0 <= i < 2**63 for name, i in ids.items())
        and len(set(ids.values())) == len(ids)
    ):
        raise ValueError(f"dataset_ids is {ids!r}; it must map each class name to an id of its own, an integer from 0")


def _validate_sizes(config) -> None:
    for field in ("image_size", "patch_size"):
        value = getattr(config, field)
        sides = (value,) if isinstance(value, int) else tuple(value) if isinstance(value, (list, tuple)) else ()
        if len(sides) not in (1, 2) or not all(isinstance(side, int) and side > 0 for side in sides) or (
            len(sides) == 1 and not isinstance(value, int)
        ):  # fmt: skip
            raise ValueError(f"{field} is {value!r}; it must be a side in pixels, or (height, width)")
    for side, patch in zip(as_pair(config.image_size), as_pair(config.patch_size)):
        if side % patch:
            nearest = max(patch, round(side / patch) * patch)
            raise ValueError(
                f"image_size {config.image_size} is no multiple of patch_size {config.patch_size}; try {nearest}"
            )
