"""Key names of third-party state dicts: one table per layout, used in both directions.

A table maps the name of each of our parameters to its place: a third-party key and, if that tensor concatenates several
of our parameters along the first dimension, the part.
"""

from typing import NamedTuple

from ...configuration import EoMTConfig
from ...configuration.pmt import PMTConfig


class Place(NamedTuple):
    key: str
    part: int = 0
    parts: int = 1


Table = dict[str, Place]


class Names(NamedTuple):
    """Third-party names of one layout, by our names."""

    outside: dict[str, str]
    "Parameters and modules outside the blocks."
    blocks: str
    "The list of blocks."
    block: dict[str, str | tuple[str, int, int]]
    "Modules of a block; (name, part, parts) for a part of a concatenation."


HEADS = {
    "query": "q",
    "class_predictor": "class_head",
    "mask_head.fc1": "mask_head.0",
    "mask_head.fc2": "mask_head.2",
    "mask_head.fc3": "mask_head.4",
}

TIMM_BLOCK = {
    "norm1": "norm1",
    "norm2": "norm2",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "attention.output": "attn.proj",
    "attention.q_proj": ("attn.qkv", 0, 3),
    "attention.k_proj": ("attn.qkv", 1, 3),
    "attention.v_proj": ("attn.qkv", 2, 3),
    "mlp.first": "mlp.fc1",
    "mlp.second": "mlp.fc2",
    "mlp.gate_proj": ("mlp.fc1", 0, 2),
    "mlp.up_proj": ("mlp.fc1", 1, 2),
    "mlp.down_proj": "mlp.fc2",
}
TIMM_EVA_BLOCK = TIMM_BLOCK | {
    "attention.q_proj": "attn.q_proj",
    "attention.k_proj": "attn.k_proj",
    "attention.v_proj": "attn.v_proj",
    "mlp.gate_proj": "mlp.fc1_g",
    "mlp.up_proj": "mlp.fc1_x",
    "mlp.norm": "mlp.norm",
}
TIMM_DINOV3_BLOCK = TIMM_BLOCK | {"mlp.gate_proj": "mlp.fc1_g", "mlp.up_proj": "mlp.fc1_x"}
HF_BLOCK = {name: name for name in TIMM_BLOCK} | {  # our names are transformers', except for these
    "attention.output": "attention.o_proj",
    "mlp.first": "mlp.fc1",
    "mlp.second": "mlp.fc2",
}
HF_DINOV3_BLOCK = HF_BLOCK | {"mlp.first": "mlp.up_proj", "mlp.second": "mlp.down_proj"}

TIMM_OUTSIDE = {
    "embeddings.cls_token": "cls_token",
    "embeddings.register_tokens": "reg_token",
    "embeddings.position_embeddings.weight": "pos_embed",
    "embeddings.projection": "patch_embed.proj",
    "layernorm": "norm",
}
HF_OUTSIDE = {name: name for name in TIMM_OUTSIDE} | {
    "embeddings.position_embeddings.weight": "embeddings.position_embeddings",
    "embeddings.projection": "embeddings.patch_embeddings.projection",
}
HF_DINOV3_OUTSIDE = HF_OUTSIDE | {"embeddings.projection": "embeddings.patch_embeddings", "layernorm": "norm"}
AUTHORS_DINOV3_OUTSIDE = {
    "embeddings.cls_token": "patch_embed.cls_token",
    "embeddings.register_tokens": "patch_embed.register_tokens",
    "embeddings.projection": "patch_embed.patch_embeddings",
    "layernorm": "norm",
}


# By name of the layout (configuration/families.py).
TIMM = {
    "vit": Names(TIMM_OUTSIDE, "blocks", TIMM_BLOCK),
    "dinov3": Names(TIMM_OUTSIDE, "blocks", TIMM_DINOV3_BLOCK),
    "eva02": Names(TIMM_OUTSIDE | {"layernorm": "fc_norm"}, "blocks", TIMM_EVA_BLOCK),
}
HF = {"vit": Names(HF_OUTSIDE, "encoder.layer", HF_BLOCK), "dinov3": Names(HF_DINOV3_OUTSIDE, "layer", HF_DINOV3_BLOCK)}
AUTHORS = TIMM | {"dinov3": Names(AUTHORS_DINOV3_OUTSIDE, "blocks", HF_DINOV3_BLOCK)}


def timm_table(config: EoMTConfig) -> Table:
    """Table of timm's backbones, and of the releases of DINOv2, DINOv3 and DeiT-III after `normalize`."""
    return _table(config, TIMM[config.layout.name])


def hf_table(config: EoMTConfig) -> Table:
    """Table of transformers' Dinov2Model, Dinov2WithRegistersModel and DINOv3ViTModel after `normalize`."""
    return _table(config, HF[config.layout.name])


def authors_table(config: EoMTConfig) -> Table:
    """Table of the authors' checkpoints: encoder and heads under `network.`, PMT's heads under `network.decoder.`."""
    if isinstance(config, PMTConfig):
        encoder = {f"encoder.{ours}": place for ours, place in _authors_encoder(config.encoder_config).items()}
        return encoder | _laterals(config) | _decoder(config) | _heads(config, "network.decoder")
    return _authors_encoder(config) | _heads(config, "network")


def _authors_encoder(config: EoMTConfig) -> Table:
    encoder = _table(config, AUTHORS[config.layout.name])
    return {ours: place._replace(key=f"network.encoder.backbone.{place.key}") for ours, place in encoder.items()}


def _heads(config: EoMTConfig, prefix: str) -> Table:
    table: Table = {}
    for ours, theirs in HEADS.items():
        kinds = ("weight",) if ours == "query" else ("weight", "bias")
        for kind in kinds:
            table[f"{ours}.{kind}"] = Place(f"{prefix}.{theirs}.{kind}")
    for index in range(config.num_upscale_blocks):
        ours, theirs = f"upscale_block.block.{index}", f"{prefix}.upscale.{index}"
        for kind in ("weight", "bias"):
            table[f"{ours}.conv1.{kind}"] = Place(f"{theirs}.conv1.{kind}")
            table[f"{ours}.layernorm2d.{kind}"] = Place(f"{theirs}.norm.{kind}")
        table[f"{ours}.conv2.weight"] = Place(f"{theirs}.conv2.weight")
    table["attn_mask_probs"] = Place(f"{prefix}.attn_mask_probs")
    return table


def _decoder(config: PMTConfig) -> Table:
    """PMT's decoder, with the names of transformers' DINOv3 in its blocks."""
    norms = {f"decoder.layernorm.{kind}": Place(f"network.decoder.decoder_norm.{kind}") for kind in ("weight", "bias")}
    return norms | _blocks(config, config.num_blocks, HF_DINOV3_BLOCK, "decoder.layers", "network.decoder.blocks")


def _laterals(config: PMTConfig) -> Table:
    """PMT's scales, batch norms and projections of the encoder's levels."""
    layers = {"mlp": {"fc1": ".0", "fc2": ".2"}, "linear": {"fc1": ""}, "identity": {}}[config.lateral_projection]
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked") if config.lateral_batch_norm else ()
    table: Table = {}
    for level in range(len(config.interaction_indices)):
        table[f"laterals.{level}.scale"] = Place(f"network.decoder.scalers.{level}")
        for name in norm:
            table[f"laterals.{level}.norm.{name}"] = Place(f"network.bn.{level}.{name}")
        for layer, their_layer in layers.items():
            for kind in ("weight", "bias"):
                place = Place(f"network.decoder.lateral_projections.{level}{their_layer}.{kind}")
                table[f"laterals.{level}.projection.{layer}.{kind}"] = place
    return table


def _table(config: EoMTConfig, names: Names) -> Table:
    """Places of the encoder's parameters."""
    outside, blocks, block = names
    projection = ".".join(filter(None, ["embeddings.patch_embeddings", config.layout.patch_projection_name]))
    table: Table = {}
    table["embeddings.cls_token"] = Place(outside["embeddings.cls_token"])
    if config.num_register_tokens:
        table["embeddings.register_tokens"] = Place(outside["embeddings.register_tokens"])
    if config.layout.has_position_embeddings:
        positions = "embeddings.position_embeddings.weight"
        table[positions] = Place(outside[positions])
    for kind in ("weight", "bias"):
        table[f"{projection}.{kind}"] = Place(f"{outside['embeddings.projection']}.{kind}")
        table[f"layernorm.{kind}"] = Place(f"{outside['layernorm']}.{kind}")
    return table | _blocks(config, config.num_hidden_layers, block, "layers", blocks)


def _blocks(config: EoMTConfig, count: int, block: dict, ours_are: str, theirs_are: str) -> Table:
    """Places of the parameters of `count` blocks, in a list that we name `ours_are` and they name `theirs_are`."""
    table: Table = {}
    for index in range(count):
        for ours, neutral in _block_modules(config).items():
            theirs = block[neutral]
            name, *part = theirs if isinstance(theirs, tuple) else (theirs,)
            for suffix in _suffixes(config, neutral):
                table[f"{ours_are}.{index}.{ours}{suffix}"] = Place(f"{theirs_are}.{index}.{name}{suffix}", *part)
    return table


def _block_modules(config: EoMTConfig) -> dict[str, str]:
    """Names of a block's modules: ours, which depend on the layout, → those in the tables above."""
    names = {name: name for name in ("norm1", "norm2", "attention.q_proj", "attention.k_proj", "attention.v_proj")}
    names[f"attention.{config.layout.attention_output_name}"] = "attention.output"
    if config.layout.has_layer_scale:
        names |= {name: name for name in ("layer_scale1.lambda1", "layer_scale2.lambda1")}
    if config.gated_mlp:
        names |= {name: name for name in ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")}
        if config.layout.has_mlp_norm:
            names["mlp.norm"] = "mlp.norm"
    else:
        first, second = config.layout.mlp_names
        names |= {f"mlp.{first}": "mlp.first", f"mlp.{second}": "mlp.second"}
    return names


def _suffixes(config: EoMTConfig, name: str) -> tuple[str, ...]:
    """Endings of the parameters of a module of a block, by its name in the tables above."""
    if name.startswith("layer_scale"):
        return ("",)
    biases = {
        "attention.q_proj": config.attention_biases["query"],
        "attention.k_proj": config.attention_biases["key"],
        "attention.v_proj": config.attention_biases["value"],
        "attention.output": config.attention_biases["output"],
        "mlp.norm": True,
        "norm1": True,
        "norm2": True,
    }
    return (".weight", ".bias") if biases.get(name, config.mlp_biased) else (".weight",)
