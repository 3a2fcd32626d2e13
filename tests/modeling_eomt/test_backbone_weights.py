"""Pre-trained backbones: with their weights, our encoder has their features."""

import re

import pytest
import torch
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from eomt import EoMTConfig, EoMTForUniversalSegmentation
from eomt.modeling_eomt.resample import resample_patch_kernel, resample_positions
from eomt.modeling_eomt.rope import rotary_table

timm = pytest.importorskip("timm")
GRID = {14: 56, 16: 64}  # pixels: 4 × 4 patches of either size
TIMM = {  # timm's architecture, and ours if the names differ
    "vit_small_patch14_reg4_dinov2": None,
    "vit_giant_patch14_reg4_dinov2": None,
    "deit3_large_patch16_384": None,
    "eva02_large_patch14_224": None,
    "vit_small_patch16_dinov3": None,
    "vit_small_patch16_dinov3_qkvb": "vit_small_patch16_dinov3",
    "vit_small_plus_patch16_dinov3": None,
    "vit_huge_plus_patch16_dinov3_qkvb": "vit_huge_plus_patch16_dinov3",
    "vit_7b_patch16_dinov3": None,
    "vit_small_patch14_dinov2": None,
}
SWIGLU = {"use_gated_mlp": True, "hidden_act": "silu"}
DINOV3 = {  # our names → fields of transformers' configuration
    "vit_small_patch16_dinov3": {},
    "vit_large_patch16_dinov3": {},
    "vit_small_plus_patch16_dinov3": SWIGLU,
    "vit_huge_plus_patch16_dinov3": SWIGLU,
    "vit_7b_patch16_dinov3": SWIGLU | {"query_bias": False, "value_bias": False},
}
SMALL = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "num_blocks": 1, "num_queries": 5}


def config_for(name: str, **overrides) -> EoMTConfig:
    return EoMTConfig.for_backbone(name, **{"image_size": 64, "num_labels": 3, **SMALL, **overrides})


@torch.no_grad()
def randomized(backbone: torch.nn.Module) -> torch.nn.Module:
    """No parameter at its initial value; layer scales large enough to be seen."""
    torch.manual_seed(0)
    for name, parameter in backbone.named_parameters():
        parameter.add_(torch.randn_like(parameter) * (0.5 if "gamma" in name or "lambda" in name else 0.05))
    for name, buffer in backbone.named_buffers():
        if name.endswith(("q_bias", "v_bias")):
            buffer.normal_(std=0.1)
    return backbone.eval()


def timm_model(name: str):
    patch = int(re.search(r"patch(\d+)", name)[1])
    return randomized(timm.create_model(name, embed_dim=48, depth=2, num_heads=2, img_size=GRID[patch]))


def released(backbone) -> dict:
    """timm's DINOv3 as in Meta's .pth files: other names, joint biases with a mask, tensors of pre-training."""
    names = {
        "gamma_1": "ls1.gamma",
        "gamma_2": "ls2.gamma",
        "reg_token": "storage_tokens",
        "fc1_g": "w1",
        "fc1_x": "w2",
    }
    if hasattr(backbone.blocks[0].mlp, "fc1_g"):
        names["fc2"] = "w3"
    state = {re.sub("|".join(names), lambda m: names[m[0]], key): t for key, t in backbone.state_dict().items()}
    for block in [key.removesuffix("q_bias") for key in state if key.endswith("q_bias")]:
        query, value = state.pop(f"{block}q_bias"), state.pop(f"{block}v_bias")
        ones = torch.ones_like(query)
        state[f"{block}qkv.bias"] = torch.cat([query, ones, value])
        state[f"{block}qkv.bias_mask"] = torch.cat([ones, 0 * ones, ones])
    return state | {
        "mask_token": torch.zeros(1, 48), "rope_embed.periods": torch.ones(6), "local_cls_norm.weight": torch.ones(48)
    }  # fmt: skip


@torch.no_grad()
def encode(model: EoMTForUniversalSegmentation, pixels):
    """Encoder only, no queries: (B, 3, H, W) → (B, P + N, D), normalized."""
    hidden = model.embeddings(pixels)
    grid = tuple(side // model.config.patch_size for side in pixels.shape[-2:])
    rotary = rotary_table(model.config, grid, pixels.device, hidden.dtype, training=False)
    for layer in model.layers:
        hidden = layer(hidden, None, rotary)
    return model.layernorm(hidden)


@pytest.mark.parametrize("name", TIMM)
@pytest.mark.parametrize("form", ["model", "state dict", "file", "released"])
@torch.no_grad()
def test_features_equal_timms(name, form, tmp_path):
    """At the patch size of the backbone, where nothing is resampled."""
    backbone = timm_model(name)
    patch = int(re.search(r"patch(\d+)", name)[1])
    width = {"intermediate_size": 128} if "7b" in name else {}  # timm rounds it to a multiple of 64
    config = config_for(TIMM[name] or name, patch_size=patch, image_size=GRID[patch], **width)
    if form == "model":
        source = backbone
    elif form == "state dict":
        source = backbone.state_dict()
    else:
        source = tmp_path / "backbone.pth"
        is_metas = form == "released" and "dinov3" in name
        torch.save(released(backbone) if is_metas else backbone.state_dict(), source)
    model = EoMTForUniversalSegmentation.from_pretrained_backbone(source, config)
    pixels = torch.randn(2, 3, GRID[patch], GRID[patch])
    theirs = backbone.forward_features(pixels)
    if "eva02" in name:
        theirs = backbone.fc_norm(theirs)
    torch.testing.assert_close(encode(model, pixels), theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("swiglu", [False, True])
@pytest.mark.parametrize("form", ["model", "directory"])
@pytest.mark.parametrize("registers", [True, False])
@torch.no_grad()
def test_features_equal_transformers_dinov2(swiglu, form, registers, tmp_path):
    import transformers

    settings = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}
    kind = "Dinov2WithRegisters" if registers else "Dinov2"
    config = getattr(transformers, f"{kind}Config")(**settings, use_swiglu_ffn=swiglu)
    backbone = randomized(getattr(transformers, f"{kind}Model")(config))
    backbone.save_pretrained(tmp_path)
    name = f"vit_{'giant' if swiglu else 'small'}_patch14_{'reg4_' if registers else ''}dinov2"
    source = backbone if form == "model" else tmp_path
    config = config_for(name, patch_size=14, image_size=56)
    model = EoMTForUniversalSegmentation.from_pretrained_backbone(source, config)
    pixels = torch.randn(2, 3, 56, 56)
    theirs = backbone(pixels).last_hidden_state
    torch.testing.assert_close(encode(model, pixels), theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", ["model", "state dict", "directory"])
@pytest.mark.parametrize("name", DINOV3)
@torch.no_grad()
def test_features_equal_transformers_dinov3(form, name, tmp_path):
    settings = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "num_register_tokens": 4}
    wide = {"intermediate_size": 96 if "7b" in name else 192}
    backbone = randomized(DINOv3ViTModel(DINOv3ViTConfig(**settings, **DINOV3[name], **wide)))
    backbone.save_pretrained(tmp_path)
    source = {"model": backbone, "state dict": backbone.state_dict(), "directory": tmp_path}[form]
    model = EoMTForUniversalSegmentation.from_pretrained_backbone(source, config_for(name))
    for size in ((64, 64), (32, 96)):
        pixels = torch.randn(2, 3, *size)
        theirs = backbone(pixels).last_hidden_state
        torch.testing.assert_close(encode(model, pixels), theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "size"), [
    ("vit_small_plus_patch16_dinov3", (384, 1536, 12, 6)), ("vit_huge_plus_patch16_dinov3", (1280, 5120, 32, 20)),
    ("vit_7b_patch16_dinov3", (4096, 8192, 40, 32)), ("vit_large_patch16_dinov3.sat493m", (1024, 4096, 24, 16)),
])  # fmt: skip
def test_sizes_equal_transformers(name, size):
    fields = dict(zip(("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"), size))
    with torch.device("meta"):
        theirs = DINOv3ViTModel(DINOv3ViTConfig(**fields, num_register_tokens=4, **DINOV3[name.partition(".")[0]]))
        ours = EoMTForUniversalSegmentation(EoMTConfig.for_backbone(name))
    encoder = [p for key, p in ours.named_parameters() if key.startswith(("embeddings", "layers", "layernorm."))]
    parameters = [p for key, p in theirs.named_parameters() if "mask_token" not in key]
    assert sorted(p.shape for p in encoder) == sorted(p.shape for p in parameters)
    assert ours.config.num_attention_heads == size[-1]


@torch.no_grad()
def test_patches_and_positions_are_resampled_on_loading():
    """Patches from 14 to 16 pixels by PI-resize, positions by bicubic resampling."""
    backbone = timm_model("vit_small_patch14_reg4_dinov2")
    config = config_for("vit_small_patch14_reg4_dinov2", image_size=(96, 64))
    model = EoMTForUniversalSegmentation.from_pretrained_backbone(backbone, config)
    state = backbone.state_dict()
    kernel = resample_patch_kernel(state["patch_embed.proj.weight"], (16, 16))
    assert torch.equal(model.embeddings.projection.weight, kernel)
    positions = resample_positions(state["pos_embed"][0], (4, 4), (6, 4))
    assert torch.equal(model.embeddings.position_embeddings.weight, positions)


@torch.no_grad()
def test_positions_of_a_square_are_resampled_to_as_many_cells_of_another_grid():
    """From 4 × 4 to 2 × 8; a timm model of 2 × 8 itself has its positions."""
    config = config_for("vit_small_patch14_reg4_dinov2", patch_size=14, image_size=(28, 112))
    square = timm_model("vit_small_patch14_reg4_dinov2")
    wide = timm.create_model(
        "vit_small_patch14_reg4_dinov2", embed_dim=48, depth=2, num_heads=2, img_size=config.image_size
    )
    for backbone, state in ((square, square), (square, square.state_dict()), (wide, wide)):
        model = EoMTForUniversalSegmentation.from_pretrained_backbone(state, config)
        positions = backbone.state_dict()["pos_embed"][0]
        expected = positions if backbone is wide else resample_positions(positions, (4, 4), (2, 8))
        assert torch.equal(model.embeddings.position_embeddings.weight, expected)


@torch.no_grad()
def test_released_dinov2_has_a_position_for_its_class_token():
    """The authors' files of DINOv2 have a mask token, register_tokens, positions (1, 1 + N, D), w12 and w3."""
    backbone = timm_model("vit_giant_patch14_reg4_dinov2")
    state = backbone.state_dict()
    raw = {key.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): t for key, t in state.items()}
    raw["register_tokens"] = raw.pop("reg_token")
    class_position = torch.randn(1, 1, 48)
    raw["pos_embed"] = torch.cat([class_position, raw["pos_embed"]], dim=1)
    raw["cls_token"] = raw["cls_token"] - class_position
    raw["mask_token"] = torch.zeros(1, 48)
    config = config_for("vit_giant_patch14_reg4_dinov2", patch_size=14, image_size=56)
    for image_size in (56, 84):  # as many patches as in pre-training, and more
        config.image_size = image_size
        ours = EoMTForUniversalSegmentation.from_pretrained_backbone(raw, config).state_dict()
        theirs = EoMTForUniversalSegmentation.from_pretrained_backbone(state, config).state_dict()
        for name in ours:
            if name.startswith(("embeddings", "layers", "layernorm")):
                torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-6, msg=f"{image_size}: {name}")


def test_queries_and_heads_are_not_loaded():
    """A model of the same seed without a backbone has the same queries and heads."""
    config = config_for("vit_small_patch16_dinov3")
    backbone = timm_model("vit_small_patch16_dinov3")
    torch.manual_seed(4)
    loaded = EoMTForUniversalSegmentation.from_pretrained_backbone(backbone, config).state_dict()
    torch.manual_seed(4)
    fresh = EoMTForUniversalSegmentation(config).state_dict()
    for name in fresh:
        encoder = name.startswith(("embeddings", "layers", "layernorm."))
        assert torch.equal(loaded[name], fresh[name]) != encoder, name


@pytest.mark.parametrize(("source", "name", "overrides", "message"), [
    ("deit3_large_patch16_384", "vit_small_patch14_reg4_dinov2", {}, "0 registers; .* 4 registers"),
    ("vit_small_patch16_dinov3", "vit_small_patch14_reg4_dinov2", {}, "DINOv3 ViT .* DINOv2"),
    ("vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3", {}, "DINOv2 .* DINOv3"),
    ("eva02_large_patch14_224", "deit3_large_patch16_384", {}, "EVA-02 ViT .* DINOv2 or DeiT-III"),
    ("vit_small_patch14_reg4_dinov2", "vit_small_patch14_reg4_dinov2", {"hidden_size": 96}, "width 48, .* width 96"),
    ("vit_small_patch14_reg4_dinov2", "vit_small_patch14_reg4_dinov2", {"num_hidden_layers": 3}, "depth 2 .* depth 3"),
    ("vit_small_patch14_reg4_dinov2", "vit_giant_patch14_reg4_dinov2", {}, "mis-shaped"),  # MLP against SwiGLU
])  # fmt: skip
def test_another_family_width_or_depth_is_refused(source, name, overrides, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        EoMTForUniversalSegmentation.from_pretrained_backbone(timm_model(source), config_for(name, **overrides))


@pytest.mark.parametrize(("source", "error", "message"), [
    ({"conv1.weight": torch.zeros(2)}, ValueError, r"conv1\.weight"),
    ({}, ValueError, "tensor"),
    ("no/such/file.pth", FileNotFoundError, r"file\.pth"),
])  # fmt: skip
def test_sources_without_a_backbone_are_refused(source, error, message):
    with pytest.raises(error, match=message):
        EoMTForUniversalSegmentation.from_pretrained_backbone(source, config_for("vit_small_patch16_dinov3"))
