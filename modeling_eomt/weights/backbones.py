"""Load pre-trained backbones of other libraries into the encoder: DINOv2-reg, DINOv3, EVA-02, DeiT-III.

N patches · D width
"""

import math
import re
from typing import NamedTuple

import torch
from huggingface_hub.errors import GatedRepoError
from torch import nn
from transformers.utils import cached_file, extract_commit_hash, logging

from ...configuration import BACKBONES, FAMILIES, EoMTConfig, as_pair, find_backbone
from ...configuration.families import DINOV3, backbone_row
from ..resample import resample_patch_kernel, resample_positions, spread_channels
from .key_maps import hf_table, timm_table
from .state_dicts import StateDict, read_state_dict, require_fit, take

logger = logging.get_logger(__name__)

ANY_REPOSITORY = ("cache_dir", "local_files_only", "token")
"""Arguments of `from_pretrained` that are not about one repository."""

# Tensors that segmentation does not use.
IGNORED = re.compile(
    r"^(head|head_dist|lm_head|classifier|pooler|local_cls_norm)\.|(^|\.)mask_token$|rope|(^|\.)inv_freq$|^dist_token$|"
    r"\.bias_mask$"  # zero for the bias of the keys, which is never read
)
# Key patterns and their replacements: from the names in transformers' files and in the releases of DINOv2, DINOv3 and
# DeiT-III to the names in the tables of key_maps.py.
RENAMED = [
    (r"^(backbone|module|model|dinov2_with_registers|dinov3_vit)\.", ""),
    (r"^(layer|encoder\.layer)\.(\d+)\.attention\.attention\.(query|key|value)\.", r"\1.\2.attention.\3."),
    (r"\.attention\.query\.", ".attention.q_proj."),
    (r"\.attention\.key\.", ".attention.k_proj."),
    (r"\.attention\.value\.", ".attention.v_proj."),
    (r"\.attention\.output\.dense\.", ".attention.o_proj."),
    (r"^(register|storage)_tokens$", "reg_token"),
    (r"\.gamma_([12])$", r".ls\1.gamma"),
    (r"\.mlp\.w12\.", ".mlp.fc1."),
    (r"\.mlp\.w1\.", ".mlp.fc1_g."),
    (r"\.mlp\.w2\.", ".mlp.fc1_x."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
]


def load_backbone(model: nn.Module, source, **hub) -> None:
    """Load a backbone's weights into the encoder of a fresh `model`; queries and heads stay as initialized.

    Args:
        source: state dict, model, file or directory in the layout of timm, transformers or the backbone's authors, or
            a name in `BACKBONES`, which is downloaded (timm's when timm is installed, else the hub's).
        hub: arguments of `from_pretrained` that locate a repository.

    Raises:
        ValueError: for a backbone of another family, width or depth than the configuration, or keys that do not fit.
    """
    model.load_state_dict(_read(source, model.config, model.state_dict(), **hub), strict=False)


def cached_revision(source) -> str | None:
    """Commit of a hub backbone in the cache; None for any other source."""
    if source not in {row.hub_name for row in BACKBONES}:
        return None
    return extract_commit_hash(cached_file(source, "config.json", local_files_only=True), None)


def delta_reference(source, config: EoMTConfig, expected: StateDict, **hub) -> StateDict:
    """Tensors of the DINOv3 backbone that an authors' checkpoint of differences refers to, under our names.

    Args:
        source: as for `load_backbone`; None for the hub's backbone of the configuration's size.
        expected: tensors of the required shapes, by our names.
        hub: arguments of `from_pretrained` that locate a repository.

    Raises:
        ValueError: for a backbone of another size, or a backbone of the hub that is gated or absent.
    """
    if source is not None:
        return _read(source, config, expected)
    name = backbone_row("dinov3", config.hidden_size, config.num_hidden_layers, config.gated_mlp).hub_name
    try:
        return _read(name, config, expected, **{key: hub[key] for key in ANY_REPOSITORY if key in hub})
    except OSError as error:
        reason = "is gated" if isinstance(error.__cause__, GatedRepoError) else "cannot be downloaded or read"
        raise ValueError(
            f"the checkpoint holds differences to {name}, which {reason}: accept its terms at "
            f"https://huggingface.co/{name} and log in (hf auth login), or give its file or folder as "
            "reference_backbone"
        ) from None


def _read(source, config: EoMTConfig, expected: StateDict, **hub) -> StateDict:
    """Tensors of a backbone under our names. Raises `ValueError` unless keys and shapes fit."""
    state = normalize(_open(source, **hub))
    found = backbone_shape(state)
    wanted = BackboneShape(config.layout.name, config.num_register_tokens, config.hidden_size, config.num_hidden_layers)
    if found != wanted:
        raise ValueError(f"the backbone is {found}; the configuration wants {wanted}")
    if config.layout is DINOV3 and config.attention_biases["query"] and not is_hf(state):
        _restore_biases(state)
    table = hf_table(config) if is_hf(state) else timm_table(config)
    ours, missing, unexpected = take(state, table)
    grid = getattr(getattr(source, "patch_embed", None), "grid_size", None)  # of timm's models
    ours = fit_sizes(ours, config, grid)
    require_fit("the backbone", expected, ours, missing, unexpected, table)
    return ours


def fit_sizes(ours: StateDict, config: EoMTConfig, grid: tuple[int, int] | None = None) -> StateDict:
    """Resample patch kernels (PI-resize) and learned positions to the configuration's patch size and grid, and spread
    kernels of RGB over its channels.

    Args:
        grid: patches (down, across) of the positions. By default they are square, if their number is one.
    """
    ours = dict(ours)
    kernel = ".".join(filter(None, ["embeddings.patch_embeddings", config.layout.patch_projection_name, "weight"]))
    if kernel in ours:
        ours[kernel] = spread_channels(ours[kernel], config.num_channels)
        ours[kernel] = resample_patch_kernel(ours[kernel], as_pair(config.patch_size))
    name = "embeddings.position_embeddings.weight"
    if name not in ours:
        return ours
    positions = ours[name].reshape(-1, ours[name].shape[-1])  # [(1 +) N, D]
    prefix, new = int(config.layout.class_token_has_position), config.grid_size
    count = len(positions) - prefix
    if not prefix and count != new[0] * new[1] and math.isqrt(count - 1) ** 2 == count - 1:
        ours["embeddings.cls_token"] = ours["embeddings.cls_token"] + positions[0]  # some files have one for the token
        positions, count = positions[1:], count - 1
    side = math.isqrt(count)
    old = grid or ((side, side) if side**2 == count else new)
    if old != new and old[0] * old[1] == count:
        logger.info(f"position embeddings resampled from {old[0]} × {old[1]} to {new[0]} × {new[1]} patches")
        positions = resample_positions(positions, old, new, prefix)
    ours[name] = positions
    return ours


def normalize(state: StateDict) -> StateDict:
    """Give keys the names of the tables of key_maps.py, and drop tensors that segmentation does not use."""
    renamed = {}
    for key, tensor in state.items():
        for pattern, replacement in RENAMED:
            key = re.sub(pattern, replacement, key)
        if IGNORED.search(key):
            continue
        swiglu = re.fullmatch(r"(.*\.mlp)\.weights_(in|out)\.(weight|bias)", key)
        if swiglu is None:
            renamed[key] = tensor
            continue
        mlp, end, kind = swiglu.groups()
        if end == "out":
            renamed[f"{mlp}.down_proj.{kind}"] = tensor
        else:
            renamed[f"{mlp}.gate_proj.{kind}"], renamed[f"{mlp}.up_proj.{kind}"] = tensor.chunk(2)
    # The last norm is "norm" or "fc_norm", by its place in the classifier; EVA-02's table has "fc_norm".
    theirs, ours = ("norm", "fc_norm") if _is_eva02(renamed) else ("fc_norm", "norm")
    if f"{theirs}.weight" in renamed and f"{ours}.weight" not in renamed:
        for kind in ("weight", "bias"):
            if f"{theirs}.{kind}" in renamed:
                renamed[f"{ours}.{kind}"] = renamed.pop(f"{theirs}.{kind}")
    return renamed


def _is_eva02(state: StateDict) -> bool:
    return "pos_embed" in state and any(".mlp.fc1_g." in key for key in state)


def _restore_biases(state: StateDict) -> None:
    """Add the joint bias of timm's DINOv3 attention, which has query and value biases, or none if zero; no key bias."""
    weights = [key for key in state if key.endswith("attn.qkv.weight")]
    for key in weights:
        attention = key.removesuffix("qkv.weight")
        zeros = state[key].new_zeros(len(state[key]) // 3)
        query = state.pop(f"{attention}q_bias", zeros)
        value = state.pop(f"{attention}v_bias", zeros)
        state.setdefault(f"{attention}qkv.bias", torch.cat([query, zeros, value]))


def is_hf(state: StateDict) -> bool:
    return "embeddings.cls_token" in state


class BackboneShape(NamedTuple):
    """Layout and size of a backbone, read from its weights."""

    layout: str
    """Name of a `Layout`."""
    registers: int
    width: int
    depth: int

    def __str__(self) -> str:
        titles = " or ".join(family.title for family in FAMILIES.values() if family.layout.name == self.layout)
        article = "an" if titles[0] in "AEIOU" else "a"
        return f"{article} {titles} ViT of width {self.width}, depth {self.depth} and {self.registers} registers"


def backbone_shape(state: StateDict) -> BackboneShape:
    """Layout and size of a normalized state dict. Raises `ValueError` if it is not a ViT's."""
    token = state.get("embeddings.cls_token" if is_hf(state) else "cls_token")
    matches = [re.match(r"(?:encoder\.)?(?:blocks|layer|layers)\.(\d+)\.", key) for key in state]
    blocks = {match[1] for match in matches if match is not None}
    if token is None or not blocks:
        raise ValueError(f"the state dict is not a ViT known here; its keys begin with {', '.join(sorted(state)[:3])}")
    if is_hf(state):
        layout = "vit" if "embeddings.position_embeddings" in state else "dinov3"
    elif _is_eva02(state):
        layout = "eva02"
    else:
        layout = "vit" if "pos_embed" in state else "dinov3"
    registers = state.get("embeddings.register_tokens", state.get("reg_token"))
    return BackboneShape(layout, 0 if registers is None else registers.shape[1], token.shape[-1], len(blocks))


def _open(source, **hub) -> StateDict:
    """State dict of a `source` of `load_backbone`, under its own names."""
    try:
        backbone = find_backbone(source) if isinstance(source, str) else None
    except ValueError:
        backbone = None
    if backbone is None:
        return read_state_dict(source)
    try:
        import timm
    except ImportError:
        timm = None
    if timm is not None and source != backbone.hub_name:
        tag = source.partition(".")[2] or backbone.tags[0]
        return read_state_dict(timm.create_model(f"{backbone.name}.{tag}", pretrained=True))
    if backbone.hub_name is None:
        raise ValueError(f"{source!r} comes from timm: pip install timm, or give a weights file")
    from transformers import AutoModel

    return read_state_dict(AutoModel.from_pretrained(backbone.hub_name, **hub))
