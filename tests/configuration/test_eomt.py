"""EoMTConfig: construction for every backbone, and errors."""

import json

import pytest

from eomt.configuration import BACKBONES, EoMTConfig, find_backbone


@pytest.mark.parametrize("backbone", BACKBONES, ids=lambda row: row.name)
def test_every_backbone_has_a_configuration_under_every_name(backbone):
    config = EoMTConfig.for_backbone(backbone.name)
    assert config.num_blocks == {12: 3, 24: 4, 32: 5, 40: 5}[backbone.depth]
    assert config.num_queries == 200
    assert config.patch_size == 16
    assert config.num_upscale_blocks == 2
    assert config.hidden_size // config.num_attention_heads == (128 if "7b" in backbone.name else 64)
    names = [f"{backbone.name}.{tag}" for tag in backbone.tags]
    if backbone.hub_name:
        names.append(backbone.hub_name)
    for name in names:
        assert EoMTConfig.for_backbone(name).to_dict() == config.to_dict()
    assert find_backbone(f"timm/{backbone.name}.{backbone.tags[0]}") is backbone


def test_scaled_models_follow_the_rules_of_their_family():
    small = {"hidden_size": 24, "num_attention_heads": 2, "num_hidden_layers": 5}
    assert EoMTConfig.for_backbone("vit_giant_patch14_reg4_dinov2", **small).mlp_width == 64
    assert EoMTConfig.for_backbone("vit_small_patch16_dinov3", **small).mlp_width == 96
    assert EoMTConfig.for_backbone("eva02_large_patch14_224", **small).mlp_width == 64
    assert EoMTConfig.for_backbone("vit_large_patch14_reg4_dinov2", num_hidden_layers=2).num_blocks == 2


def test_semantic_models_have_100_queries():
    semantic = EoMTConfig.for_backbone("vit_base_patch14_reg4_dinov2", 512, "semantic")
    assert (semantic.num_queries, semantic.task, semantic.image_size) == (100, "semantic", 512)


@pytest.mark.parametrize(("fields", "message"), [
    ({"num_blocks": 30}, "num_blocks is 30"),
    ({"num_attention_heads": 7}, "hidden_size is 1024"),
    ({"stuff_label_ids": [1, 5]}, r"stuff_label_ids \[5\]"),
    ({"task": "depth"}, "task is 'depth'"),
    ({"image_size": 630}, "image_size 630 .* 16; .* 624"),
    ({"image_size": (640, 630)}, r"image_size \(640, 630\)"),
    ({"image_size": "large"}, "image_size is 'large'"),
    ({"num_queries": 0}, "num_queries is 0; .* 1 .* 100000"),
    ({"num_upscale_blocks": 100_000}, "num_upscale_blocks is 100000; .* 1 .* 8"),
    ({"no_object_weight": -1}, "no_object_weight is -1"),
    ({"importance_sample_ratio": 1.5}, "importance_sample_ratio is 1.5"),
])  # fmt: skip
def test_wrong_fields_are_refused_by_name(fields, message):
    with pytest.raises(ValueError, match=message):
        EoMTConfig(**fields)


@pytest.mark.parametrize(("field", "value"), [("id2label", ["sky"]), ("label2id", 3), ("architectures", "EoMT")])
def test_wrong_types_of_transformers_fields_are_refused(field, value, tmp_path):
    EoMTConfig().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
    with pytest.raises(ValueError, match=f"^{field} is .*;"):
        EoMTConfig.from_pretrained(tmp_path)


def test_fields_of_another_family_are_not_checked():
    assert EoMTConfig(rope_theta={}).rope_theta == {}


def test_unknown_backbones_are_refused():
    with pytest.raises(ValueError, match="'resnet50'"):
        EoMTConfig.for_backbone("resnet50")
    with pytest.raises(ValueError, match=r"'deit3_large_patch16_384\.imagenet'"):
        EoMTConfig.for_backbone("deit3_large_patch16_384.imagenet")
