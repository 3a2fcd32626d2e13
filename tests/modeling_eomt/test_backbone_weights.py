"""Pre-trained backbones: what our encoder computes from them is what they compute."""

import re

import pytest
import torch

from eomt import EoMTConfig, EoMTForUniversalSegmentation
from eomt.modeling_eomt.resample import resample_patch_kernel, resample_positions
from eomt.modeling_eomt.rope import rotary_table

timm = pytest.importorskip("timm")
GRID = {14: 56, 16: 64}  # pixels: 4 × 4 patches of either size
TIMM = {  # timm's architecture → ours; where the names differ, timm has the same family once more
    "vit_small_patch14_reg4_dinov2": None,
    "vit_giant_patch14_reg4_dinov2": None,
    "deit3_large_patch16_384": None,
    "eva02_large_patch14_224": None,
    "vit_small_patch16_dinov3": None,
    "vit_small_patch16_dinov3_qkvb": "vit_small_patch16_dinov3",
    "vit_small_patch14_dinov2": None,
}
SMALL = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "num_blocks": 1, "num_queries": 5}


def config_for(name: str, **overrides) -> EoMTConfig:
    return EoMTConfig.for_backbone(name, **{"image_size": 64, "num_labels": 3, **SMALL, **overrides})


@torch.no_grad()
def randomised(backbone: torch.nn.Module) -> torch.nn.Module:
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
    return randomised(timm.create_model(name, embed_dim=48, depth=2, num_heads=2, img_size=GRID[patch]))


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
@pytest.mark.parametrize("form", ["model", "state dict", "file"])
@torch.no_grad()
def test_timm_features(name, form, tmp_path):
    """At the backbone's own patch size nothing is resampled: the features are timm's."""
    backbone, ours = timm_model(name), TIMM[name] or name
    patch = int(re.search(r"patch(\d+)", name)[1])
    config = config_for(ours, patch_size=patch, image_size=GRID[patch])
    source = {"model": backbone, "state dict": backbone.state_dict(), "file": tmp_path / "backbone.pth"}[form]
    if form == "file":
        torch.save(backbone.state_dict(), source)
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
def test_transformers_dinov2_features(swiglu, form, registers, tmp_path):
    import transformers

    settings = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}
    kind = "Dinov2WithRegisters" if registers else "Dinov2"
    config = getattr(transformers, f"{kind}Config")(**settings, use_swiglu_ffn=swiglu)
    backbone = randomised(getattr(transformers, f"{kind}Model")(config))
    backbone.save_pretrained(tmp_path)
    name = f"vit_{'giant' if swiglu else 'small'}_patch14_{'reg4_' if registers else ''}dinov2"
    source = backbone if form == "model" else tmp_path
    config = config_for(name, patch_size=14, image_size=56)
    model = EoMTForUniversalSegmentation.from_pretrained_backbone(source, config)
    pixels = torch.randn(2, 3, 56, 56)
    theirs = backbone(pixels).last_hidden_state
    torch.testing.assert_close(encode(model, pixels), theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", ["model", "state dict", "directory"])
@torch.no_grad()
def test_transformers_dinov3_features(form, tmp_path):
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    settings = {"hidden_size": 48, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 2}
    backbone = randomised(DINOv3ViTModel(DINOv3ViTConfig(**settings, num_register_tokens=4)))
    backbone.save_pretrained(tmp_path)
    source = {"model": backbone, "state dict": backbone.state_dict(), "directory": tmp_path}[form]
    model = EoMTForUniversalSegmentation.from_pretrained_backbone(source, config_for("vit_small_patch16_dinov3"))
    for size in ((64, 64), (32, 96)):  # rotary positions know any size
        pixels = torch.randn(2, 3, *size)
        theirs = backbone(pixels).last_hidden_state
        torch.testing.assert_close(encode(model, pixels), theirs, rtol=0, atol=1e-5)


@torch.no_grad()
def test_resized_to_another_patch_and_grid():
    """Patches 14 → 16 by PI-resize and positions by bicubic resampling, each once, at load."""
    backbone = timm_model("vit_small_patch14_reg4_dinov2")
    config = config_for("vit_small_patch14_reg4_dinov2", image_size=(96, 64))
    model = EoMTForUniversalSegmentation.from_pretrained_backbone(backbone, config)
    state = backbone.state_dict()
    kernel = resample_patch_kernel(state["patch_embed.proj.weight"], (16, 16))
    assert torch.equal(model.embeddings.projection.weight, kernel)
    positions = resample_positions(state["pos_embed"][0], (4, 4), (6, 4))
    assert torch.equal(model.embeddings.position_embeddings.weight, positions)


@torch.no_grad()
def test_released_dinov2_has_a_position_for_its_class_token():
    """DINOv2's own release: mask token, register_tokens, positions (1, 1 + N, D), w12 and w3."""
    backbone = timm_model("vit_giant_patch14_reg4_dinov2")
    state = backbone.state_dict()
    raw = {key.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): t for key, t in state.items()}
    raw["register_tokens"] = raw.pop("reg_token")
    class_position = torch.randn(1, 1, 48)
    raw["pos_embed"] = torch.cat([class_position, raw["pos_embed"]], dim=1)
    raw["cls_token"] = raw["cls_token"] - class_position
    raw["mask_token"] = torch.zeros(1, 48)
    config = config_for("vit_giant_patch14_reg4_dinov2", patch_size=14, image_size=56)
    for image_size in (56, 84):  # as many patches as there are, and others
        config.image_size = image_size
        ours = EoMTForUniversalSegmentation.from_pretrained_backbone(raw, config).state_dict()
        theirs = EoMTForUniversalSegmentation.from_pretrained_backbone(state, config).state_dict()
        for name in ours:
            if name.startswith(("embeddings", "layers", "layernorm")):
                torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-6, msg=f"{image_size}: {name}")


def test_heads_and_queries_stay_fresh():
    """The same seed without a backbone gives the same queries and heads: nothing but the encoder is loaded."""
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
def test_another_family_width_or_depth_is_a_clear_error(source, name, overrides, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        EoMTForUniversalSegmentation.from_pretrained_backbone(timm_model(source), config_for(name, **overrides))


@pytest.mark.parametrize(("source", "error", "message"), [
    ({"conv1.weight": torch.zeros(2)}, ValueError, r"conv1\.weight"),
    ({}, ValueError, "tensor"),
    ("no/such/file.pth", FileNotFoundError, r"file\.pth"),
])  # fmt: skip
def test_no_backbone_at_all(source, error, message):
    with pytest.raises(error, match=message):
        EoMTForUniversalSegmentation.from_pretrained_backbone(source, config_for("vit_small_patch16_dinov3"))
