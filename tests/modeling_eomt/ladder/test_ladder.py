"""Steps 0 to 3: parameters and GFLOPs of the paper's rows, checkpoints, gradients, masks and errors."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForUniversalSegmentation

from eomt import EoMTConfig, EoMTForUniversalSegmentation
from eomt.modeling_eomt.ladder import LadderConfig, LadderForUniversalSegmentation
from eomt.speed.flops import count_flops
from eomt.training import layerwise_lr_groups
from tests.models import BACKBONE_OF_KIND, TINY, randomize, targets

S, B, L, G = (f"vit_{size}_patch14_reg4_dinov2" for size in ("small", "base", "large", "giant"))
EVA, DEIT = "eva02_large_patch14_224", "deit3_large_patch16_384"
CITYSCAPES, ADE20K = {"num_labels": 19, "task": "semantic"}, {"num_labels": 150, "task": "semantic"}
SMALL_VIT = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
SMALL = {**TINY, "num_blocks": 3, "feature_size": 32, "decoder_attention_heads": 2, "encoder_layers": 1,
         "encoder_feedforward_dim": 32, "dim_feedforward": 32, "stem_width": 8, "layerscale_value": 1.0}  # fmt: skip
STEPS = (0, 1, 2, 3)

# backbone, step, size, options, and expected: parameters, GMACs of an input (fvcore's; the paper has 700 for step 1)
ROWS = [
    (L, 0, 640, {}, 348_674_054, 830.25),
    (L, 1, 640, {}, 342_263_622, 739.73),
    (L, 2, 640, {}, 337_211_782, 685.36),
    (L, 3, 640, {}, 328_273_286, 673.11),
    (S, 0, 640, {}, 46_559_190, 164.55),
    (B, 0, 640, {}, 120_961_830, 346.55),
    (G, 0, 640, {}, 1_208_646_086, 2510.34),
    (L, 0, 1280, {}, 353_589_254, 4816.66),
    (G, 0, 1280, {}, 1_216_018_886, 13789.46),
    (L, 0, 1024, CITYSCAPES, 351_149_460, 2600.37),
    (L, 0, 512, ADE20K, 348_037_399, 497.80),
    (EVA, 0, 640, {}, 348_711_878, 828.86),
    (DEIT, 0, 640, {}, 348_669_958, 828.41),
]


def on_meta(backbone, step, size, options) -> LadderForUniversalSegmentation:
    config = LadderConfig.for_backbone(backbone, step=step, image_size=size, **{"num_labels": 133, **options})
    with torch.device("meta"):
        return LadderForUniversalSegmentation(config)


@pytest.mark.parametrize(("backbone", "step", "size", "options", "parameters", "gmacs"), ROWS)
def test_parameters_of_the_papers_rows(backbone, step, size, options, parameters, gmacs):
    model = on_meta(backbone, step, size, options)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize(
    ("backbone", "step", "size", "options", "parameters", "gmacs"),
    [*ROWS[1:4], *(pytest.param(*row, marks=pytest.mark.slow) for row in (ROWS[0], *ROWS[4:]))],
)
def test_gflops_of_the_papers_rows(backbone, step, size, options, parameters, gmacs):
    model = on_meta(backbone, step, size, options)
    assert round(count_flops(model, torch.empty(1, 3, size, size, device="meta")) / 1e9, 2) == gmacs


def ladder(step: int, kind: str = "dinov2", seed: int = 0, **overrides) -> LadderForUniversalSegmentation:
    torch.manual_seed(seed)
    config = LadderConfig.for_backbone(BACKBONE_OF_KIND[kind], step=step, **{**SMALL, **overrides})
    model = LadderForUniversalSegmentation(config).eval()
    randomize(model)
    return model


@pytest.mark.parametrize(
    ("step", "kind"), [*((3, kind) for kind in BACKBONE_OF_KIND), *((step, "dinov2") for step in (0, 1, 2))]
)
def test_saved_and_loaded_by_the_auto_classes(step, kind, tmp_path):
    model, pixels = ladder(step, kind), torch.randn(2, 3, 64, 96)
    model.set_attn_mask_probs([1, 0.5, 0])
    model.save_pretrained(tmp_path)
    loaded = AutoModelForUniversalSegmentation.from_pretrained(tmp_path)
    assert type(loaded) is LadderForUniversalSegmentation
    assert type(AutoConfig.from_pretrained(tmp_path)) is type(model.config)
    assert loaded.config.step == step
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    assert loaded.infers_with_masks
    for masks in ([0, 0, 0], [1, 1, 1]):
        model.set_attn_mask_probs(masks)
        loaded.set_attn_mask_probs(masks)
        with torch.no_grad():
            out, found = model(pixels), loaded(pixels)
        assert out.masks_queries_logits.shape == (2, 7, 16, 24)
        assert torch.equal(out.masks_queries_logits, found.masks_queries_logits)
        assert len(out.auxiliary_logits or []) == sum(masks)


@pytest.mark.parametrize("step", STEPS)
def test_every_parameter_has_a_gradient_and_masks_change_the_result(step):
    model, pixels = ladder(step).train(), torch.randn(2, 3, 64, 64)
    masks, labels = targets((3, 1))
    out = model(pixels, masks, labels)
    assert len(out.loss_dict) == 3 * 4
    out.loss.backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    model.eval().set_attn_mask_probs([0, 0, 0])
    free = model(pixels).masks_queries_logits
    model.set_attn_mask_probs([1, 1, 1])
    assert not torch.equal(model(pixels).masks_queries_logits, free)


@pytest.mark.parametrize("step", STEPS)
def test_backbones_load_as_in_eomt(step):
    eomt = EoMTForUniversalSegmentation(
        EoMTConfig.for_backbone(S, **{**SMALL_VIT, "num_blocks": 1}, image_size=64, num_labels=5)
    )
    prefixes = ("embeddings.", "layers.", "layernorm.")
    names = {"embeddings.position_embeddings.weight": "embeddings.position_embeddings"}
    state = {}
    for name, tensor in eomt.state_dict().items():
        if name.startswith(prefixes):
            name = name.replace("layers.", "encoder.layer.").replace("out_proj", "o_proj")
            state[names.get(name, name)] = tensor
    config = LadderConfig.for_backbone(S, step=step, **{**SMALL, **SMALL_VIT})
    model = LadderForUniversalSegmentation.from_pretrained_backbone(state, config)
    for name, tensor in model.state_dict().items():
        if name.startswith(prefixes):
            assert torch.equal(tensor, eomt.state_dict()[name]), name


def test_adapter_and_heads_have_the_rate_of_heads():
    groups = {group["name"]: group for group in layerwise_lr_groups(ladder(0), lr=1.0, llrd=0.5)}
    assert groups["adapter.up.weight"]["lr"] == groups["heads.class_predictor.weight"]["lr"] == 1
    assert groups["layers.0.norm1.weight"]["lr"] == 0.5**3
    assert groups["layers.0.norm1.weight"]["is_backbone"]
    assert not groups["adapter.up.weight"]["is_backbone"]
    assert "layernorm.weight" not in groups  # the adapter does not use it


@pytest.mark.parametrize(
    ("field", "value"),
    [("step", 4), ("image_size", 48), ("patch_size", 8), ("num_hidden_layers", 6), ("feature_size", 48)],
)
def test_values_that_a_step_does_not_support_are_refused(field, value):
    with pytest.raises(ValueError, match=f"^{field} is {value};"):
        LadderConfig.for_backbone(S, **{**SMALL, "step": 0, field: value})


def test_an_image_that_the_largest_stride_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="48 × 64"):
        ladder(1)(torch.zeros(1, 3, 48, 64))
    assert ladder(3)(torch.zeros(1, 3, 48, 64)).masks_queries_logits.shape == (1, 7, 12, 16)


@pytest.mark.parametrize("step", [0, 3])
def test_reentrant_checkpointing_has_the_same_gradients(step):
    pixels, (masks, labels) = torch.randn(2, 3, 64, 64), targets((3, 1))
    gradients = []
    for checkpointing in (False, True):
        model = ladder(step).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": True})
        torch.manual_seed(0)
        model(pixels.clone().requires_grad_(), masks, labels).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-5)
