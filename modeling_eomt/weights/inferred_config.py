"""The configuration of an authors' checkpoint of EoMT or PMT, inferred from the names and shapes of its tensors.

Q queries · C labels · D width · N patches
"""

import math
import re
from collections.abc import Mapping, Sequence

from ...configuration import TASK_ROWS, EoMTConfig, as_pair
from ...configuration.checkpoint import infer_task
from ...configuration.families import backbone_row, find_backbone, nearest_backbone
from ...configuration.labels import BY_SIZE, LabelSpace, label_space
from ...configuration.pmt import PMTConfig
from .state_dicts import StateDict

HEAD_WIDTH = 64  # of the paper's backbones (Table A); not visible in any shape
DINOV3_IMAGE_SIZE = 640  # rotary positions do not depend on the size
ENCODER = "network.encoder.backbone."
DECODER = "network.decoder."  # PMT's


def config_from_checkpoint(
    state: StateDict,
    *,
    heads: int | None = None,
    image_size: int | Sequence[int] | None = None,
    task: str | None = None,
    labels: LabelSpace | None = None,
    stuff_label_ids: Sequence[int] | None = None,
    backbone: str | None = None,
    saved: Mapping | None = None,
) -> EoMTConfig:
    """The configuration that fits an authors' state dict (keys `network.*`).

    Args:
        heads: attention heads; by default those of the backbone of this size, else D / 64.
        image_size: side or (height, width) in pixels. By default the size of the square grid of learned positions, and
            640 for DINOv3, which has none.
        task: "panoptic", "instance" or "semantic"; by default inferred from the numbers of labels and queries.
        labels: by default those of the paper's data set with C classes (COCO, ADE20K, Cityscapes), else LABEL_0, …
        stuff_label_ids: by default those of the data set for a panoptic model, else none.
        backbone: a name in `BACKBONES`, for a checkpoint of PMT's decoder alone, which does not name its encoder.
        saved: the configuration that `eomt convert` wrote into the file (`read_config`); it replaces all defaults.

    Raises:
        ValueError: for a missing key, or an argument that contradicts a shape.
    """
    if backbone is not None and any(key.startswith(ENCODER) for key in state):
        raise ValueError(f"the checkpoint holds its encoder; leave out backbone {backbone}")
    if saved:
        return _saved_config(saved, heads, image_size, task, labels, stuff_label_ids)
    is_pmt = f"{DECODER}q.weight" in state
    prefix = DECODER if is_pmt else "network."
    queries, width = _shape(state, f"{prefix}q.weight")
    num_labels = _shape(state, f"{prefix}class_head.weight")[0] - 1
    num_blocks = _shape(state, f"{prefix}attn_mask_probs")[0]
    if backbone is None:
        family, depth, swiglu = _encoder(state)
        row = backbone_row(family, width, depth, swiglu)
        patch = tuple(_kernel(state).shape[-2:])
    else:
        row = find_backbone(backbone)
        depth, patch = row.depth, as_pair(EoMTConfig.patch_size)
        if row.width != width:
            raise ValueError(f"the decoder has width {width}, the backbone {backbone} has {row.width}")
    if heads is None and (row.width, row.depth) == (width, depth):
        heads = row.heads
    if heads is None:
        if width % HEAD_WIDTH:
            raise ValueError(f"the width {width} is not a multiple of {HEAD_WIDTH}, the width of a head; give heads")
        heads = width // HEAD_WIDTH
    if labels is not None and labels.num_labels != num_labels:
        raise ValueError(f"{labels.num_labels} labels were given, the checkpoint has {num_labels} classes")
    space = labels or default_labels(num_labels, queries, task)
    task = task or infer_task(None, queries, name=space.name if space else "")[0]
    names = space.config_fields if space else {"num_labels": num_labels}
    if stuff_label_ids is None:
        stuff_label_ids = space.stuff_label_ids if space and task == "panoptic" else ()
    fields = {
        "image_size": image_size or _image_size(state, row.family, patch),
        "task": task,
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "num_blocks": num_blocks,
        "num_queries": queries,
        "num_upscale_blocks": _length(state, f"{prefix}upscale."),
        "patch_size": patch[0] if patch[0] == patch[1] else patch,
        "stuff_label_ids": list(stuff_label_ids),
    }
    if is_pmt:
        return PMTConfig.for_backbone(backbone or row.name, **fields, **names, **_lateral_fields(state))
    return EoMTConfig.for_backbone(row.name, **fields, **names)


def _lateral_fields(state: StateDict) -> dict[str, str | bool]:
    """Fields of a `PMTConfig` about the modules for the encoder's levels."""
    projection, kind = f"{DECODER}lateral_projections.0", "identity"
    if f"{projection}.weight" in state:
        kind = "linear"
    elif f"{projection}.0.weight" in state:
        kind = "mlp"
    return {"lateral_projection": kind, "lateral_batch_norm": "network.bn.0.weight" in state}


def _saved_config(saved: Mapping, heads, image_size, task, labels: LabelSpace | None, stuff_label_ids) -> EoMTConfig:
    """The configuration in the file; arguments override its fields."""
    given = {"num_attention_heads": heads, "image_size": image_size, "task": task}
    if stuff_label_ids is not None:
        given["stuff_label_ids"] = list(stuff_label_ids)
    if labels is not None:
        given |= {"id2label": labels.id2label, "label2id": labels.label2id}
    kinds = (*EoMTConfig.class_of_layout.values(), PMTConfig)
    config_class = next((kind for kind in kinds if kind.model_type == saved.get("model_type")), None)
    if config_class is None:
        raise ValueError(f"the configuration in the file is of {saved.get('model_type')!r}, not of an EoMT")
    return config_class.from_dict(dict(saved), **{name: value for name, value in given.items() if value is not None})


def default_labels(num_labels: int, queries: int, task: str | None) -> LabelSpace | None:
    """Labels of the paper's data set of this size, or None. ADE20K has 150 for two tasks: the queries decide."""
    if num_labels not in BY_SIZE:
        return None
    name, _ = BY_SIZE[num_labels]
    few_queries = task is None and queries == TASK_ROWS["semantic"].num_queries
    if name == "ade20k_panoptic" and (task == "semantic" or few_queries):
        name = "ade20k_semantic"
    return label_space(name)


def _encoder(state: StateDict) -> tuple[str, int, bool]:
    """Family, depth, and whether the MLP is a SwiGLU, from the encoder's keys."""
    keys = {key.removeprefix(ENCODER) for key in state if key.startswith(ENCODER)}
    depth = _length(state, f"{ENCODER}blocks.")
    if not depth and f"{DECODER}q.weight" in state:
        raise ValueError(
            "the checkpoint is PMT's decoder alone; give eomt convert the name of its encoder, as backbone"
        )
    if not depth:
        raise ValueError(f"the checkpoint has no {ENCODER}blocks.*: it is not from the authors' EoMT code")
    if "patch_embed.cls_token" in keys:
        return "dinov3", depth, "blocks.0.mlp.gate_proj.weight" in keys
    if "blocks.0.mlp.fc1_g.weight" in keys:
        return "eva02", depth, True
    first, second = (_shape(state, f"{ENCODER}blocks.0.mlp.{name}.weight") for name in ("fc1", "fc2"))
    return "dinov2" if "reg_token" in keys else "deit3", depth, first[0] == 2 * second[1]


def _length(state: StateDict, prefix: str) -> int:
    """Number of modules in the list of this name."""
    indices = [re.match(rf"{re.escape(prefix)}(\d+)\.", key) for key in state]
    return len({match[1] for match in indices if match is not None})


def _kernel(state: StateDict):
    for name in ("patch_embed.proj.weight", "patch_embed.patch_embeddings.weight"):
        if ENCODER + name in state:
            return state[ENCODER + name]
    raise ValueError(f"the checkpoint has no {ENCODER}patch_embed.proj.weight")


def _image_size(state: StateDict, family: str, patch: tuple[int, int]) -> int | tuple[int, int]:
    if family == "dinov3":
        return DINOV3_IMAGE_SIZE
    if f"{ENCODER}pos_embed" not in state:
        raise ValueError("the checkpoint has no positions to infer its image size from; give image_size")
    prefix = 1 if family == "eva02" else 0  # EVA-02's class token has a position, too
    count = _shape(state, f"{ENCODER}pos_embed")[-2] - prefix
    side = math.isqrt(count)
    if side**2 != count:
        raise ValueError(f"the checkpoint's {count} positions are not a square grid; give image_size")
    height, width = side * patch[0], side * patch[1]
    return height if height == width else (height, width)


def _shape(state: Mapping, key: str) -> tuple[int, ...]:
    if key not in state:
        raise ValueError(f"the checkpoint has no {key}; its keys begin with {', '.join(sorted(state)[:3])}")
    return tuple(state[key].shape)


def describe_config(config: EoMTConfig) -> str:
    """Summary of a model, one line per property."""
    encoder = config.encoder_config if isinstance(config, PMTConfig) else config
    row, exact = nearest_backbone(encoder)
    blocks = f"{config.num_blocks} of {encoder.num_hidden_layers} process the queries"
    if encoder is not config:
        levels = ", ".join(str(index) for index in config.interaction_indices)
        blocks = f"{config.num_blocks} of a decoder (PMT) that reads the encoder's blocks {levels}"
    names = [config.id2label[label] for label in range(config.num_labels)]
    size, patch = (as_pair(value) for value in (config.image_size, config.patch_size))
    facts = {
        "backbone": f"{row.name}{'' if exact else ', scaled'}: width {config.hidden_size}, depth "
        f"{encoder.num_hidden_layers}, {config.num_attention_heads} heads",
        "classes": f"{config.num_labels} ({names[0]} … {names[-1]}), {len(config.stuff_label_ids)} of them stuff",
        "queries": f"{config.num_queries}",
        "blocks": blocks,
        "size": f"{size[0]} × {size[1]} pixels, patches of {patch[0]} × {patch[1]}",
        "task": config.task,
    }
    return "\n".join(f"{name:<9} {value}" for name, value in facts.items())
