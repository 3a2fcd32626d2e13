"""PMT: the frozen encoder, batch norm, checkpoints of the decoder alone, and decoders that share an encoder."""

import copy
import json

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from huggingface_hub import constants
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForUniversalSegmentation,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    pipeline,
)

import eomt
from eomt import EoMTForUniversalSegmentation, EoMTImageProcessor, PMTConfig, PMTForUniversalSegmentation
from eomt.modeling_eomt import convert_to_authors, load_authors_checkpoint
from tests.modeling_eomt.test_published import BASE, SIZE, in_cache
from tests.models import BACKBONE_OF_KIND, TINY, randomize, targets, tiny_model

KINDS = list(BACKBONE_OF_KIND)


def tiny_pmt_config(kind="dinov2", **overrides):
    return PMTConfig.for_backbone(BACKBONE_OF_KIND[kind], **{**TINY, **overrides})


def tiny_pmt(kind="dinov2", seed=0, **overrides):
    torch.manual_seed(seed)
    model = PMTForUniversalSegmentation(tiny_pmt_config(kind, **overrides)).eval()
    randomize(model)
    model.set_attn_mask_probs([0.0] * model.config.num_blocks)
    return model


def pixels(batch=2, height=64, width=96, seed=5):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def logits(model, images=None):
    with torch.no_grad():
        out = model(pixels() if images is None else images)
    return out.masks_queries_logits, out.class_queries_logits


def assert_same(ours, theirs, **tolerance):
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one, other, **(tolerance or {"rtol": 0, "atol": 0}))


@pytest.mark.parametrize("kind", KINDS)
def test_every_family_trains_the_decoder_and_never_the_encoder(kind):
    model = tiny_pmt(kind).train()
    model.set_attn_mask_probs([0.5, 0.5])
    before = copy.deepcopy(model.encoder.state_dict())
    assert not any(module.training for module in model.encoder.modules())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.5)
    masks, labels = targets(size=(64, 96))
    out = model(pixels(), masks, labels)
    assert len(out.auxiliary_logits) == 2
    out.loss.backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without
    assert all(name.startswith("encoder.") for name in without)
    optimizer.step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.encoder.state_dict().items())
    assert model.laterals[0].norm.running_mean.any()


def test_training_in_half_precision_is_near_that_in_full():
    full, half = tiny_pmt().train(), tiny_pmt().to(torch.bfloat16).train()
    masks, labels = targets(size=(64, 96))
    losses = [model(pixels(), masks, labels).loss for model in (full, half)]
    losses[1].backward()
    assert float(losses[1]) == pytest.approx(float(losses[0]), rel=0.02)
    for ours, theirs in zip(half.laterals, full.laterals):
        assert ours.projection.fc1.weight.grad.any()
        torch.testing.assert_close(ours.norm.running_var.float(), theirs.norm.running_var, rtol=0.05, atol=0.01)


def test_offloaded_weights():
    expected = logits(tiny_pmt())
    assert_same(logits(cpu_offload(tiny_pmt(), execution_device=torch.device("cpu"))), expected)


@pytest.mark.parametrize("projection", ["mlp", "linear", "identity"])
def test_folded_batch_norm_changes_nothing(projection):
    model = tiny_pmt(lateral_projection=projection)
    lateral = model.laterals[1]
    with torch.no_grad():
        lateral.norm.running_mean.normal_()
        lateral.norm.running_var.uniform_(0.5, 2)
        level = torch.randn(2, 7, 48)
        norm = lateral.norm
        normalized = torch.nn.functional.batch_norm(
            level.transpose(1, 2), norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
        ).transpose(1, 2)
        projected = normalized if lateral.projection is None else lateral.projection(normalized)
        expected = (normalized + projected) * lateral.scale
        torch.testing.assert_close(lateral(level), expected, rtol=0, atol=1e-5)


def test_one_level_without_projection_is_twice_the_encoders_output():
    model = tiny_pmt(interaction_indices=[3], lateral_projection="identity", lateral_batch_norm=False)
    with torch.no_grad():
        model.laterals[0].scale.fill_(0.5)
        hidden_states, _, _ = model.encode(pixels(), (4, 6))
        (level,) = model.encoder(pixels(), [3], (4, 6))
    assert torch.equal(hidden_states, level)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("auto", [AutoModel, AutoModelForUniversalSegmentation, PMTForUniversalSegmentation])
def test_saved_models_load_unchanged(kind, auto, tmp_path):
    model = tiny_pmt(kind)
    model.save_pretrained(tmp_path)
    loaded = auto.from_pretrained(tmp_path).eval()
    assert type(loaded) is PMTForUniversalSegmentation
    assert type(AutoConfig.from_pretrained(tmp_path).encoder_config) is type(model.config.encoder_config)
    fields = {name: getattr(loaded.config, name) for name in PMTConfig.__annotations__ if name != "encoder_config"}
    assert fields == {name: getattr(model.config, name) for name in fields}
    assert not any(parameter.requires_grad for parameter in loaded.encoder.parameters())
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    assert_same(logits(loaded), logits(model), rtol=0, atol=1e-5)


def test_another_image_size_resamples_the_encoder(tmp_path):
    model = tiny_pmt()
    model.save_pretrained(tmp_path)
    loaded = PMTForUniversalSegmentation.from_pretrained(tmp_path, image_size=96).eval()
    model.resize(96)
    assert loaded.config.image_size == loaded.config.encoder_config.image_size == 96
    assert_same(logits(loaded), logits(model))


def test_the_pipeline_runs(tmp_path):
    tiny_pmt(task="semantic").save_pretrained(tmp_path)
    EoMTImageProcessor(task="semantic", size=64).save_pretrained(tmp_path)
    found = pipeline("image-segmentation", str(tmp_path))(Image.new("RGB", (80, 60)), subtask="semantic")
    assert {entry["mask"].size for entry in found} == {(80, 60)}


# --- checkpoints of the decoder alone -----------------------------------------------------------------------------


@pytest.fixture
def decoder_alone(tmp_path):
    """A model, the folder of its decoder alone, and its complete folder."""
    model = tiny_pmt()
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "decoder", decoder_only=True)
    return model, tmp_path / "decoder", tmp_path / "whole"


def test_a_decoder_alone_loads_with_its_encoder(decoder_alone):
    model, folder, whole = decoder_alone
    sizes = [(path / "model.safetensors").stat().st_size for path in (folder, whole)]
    encoder = sum(parameter.numel() for parameter in model.encoder.parameters())
    assert sizes[1] - sizes[0] >= 4 * encoder
    for encoder in (model, whole, str(whole), model.state_dict()):
        loaded = PMTForUniversalSegmentation.from_pretrained(folder, encoder=encoder).eval()
        assert loaded.config.encoder_digest is None
        assert_same(logits(loaded), logits(model))
    assert_same(logits(AutoModel.from_pretrained(folder, encoder=whole).eval()), logits(model))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_has_the_same_encoder(dtype, decoder_alone):
    model, folder, _ = decoder_alone
    loaded = PMTForUniversalSegmentation.from_pretrained(folder, encoder=model, dtype=dtype)
    expected = copy.deepcopy(model).to(dtype).encoder.state_dict()
    for name, tensor in loaded.encoder.state_dict().items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_decoder_saved_in_half_precision_finds_its_encoder(dtype, decoder_alone, tmp_path):
    model, folder, whole = decoder_alone
    loaded = PMTForUniversalSegmentation.from_pretrained(folder, encoder=model, dtype=dtype)
    loaded.save_pretrained(tmp_path / "again", decoder_only=True)
    PMTForUniversalSegmentation.from_pretrained(tmp_path / "again", encoder=model)
    loaded.float().save_pretrained(tmp_path / "float", decoder_only=True)  # of the rounded weights
    PMTForUniversalSegmentation.from_pretrained(tmp_path / "float", encoder=loaded)
    complete = PMTForUniversalSegmentation.from_pretrained(whole, dtype=torch.float16)
    with pytest.raises(ValueError, match="float32"):
        complete.save_pretrained(tmp_path / "rounded", decoder_only=True)


def test_another_encoder_is_refused(decoder_alone):
    model, folder, whole = decoder_alone
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.encoder.layers[2].mlp.fc1.weight[0, 0] += 0.1
    for encoder in (changed, tiny_pmt(hidden_size=32), whole / "nowhere"):
        with pytest.raises((ValueError, OSError)):
            PMTForUniversalSegmentation.from_pretrained(folder, encoder=encoder)
    with pytest.raises(ValueError, match="encoder"):
        PMTForUniversalSegmentation.from_pretrained(whole, encoder=model)


def test_a_decoder_with_the_path_of_its_encoder_asks_for_it(tmp_path):
    model = tiny_pmt()
    model.config.encoder_name = str(tmp_path)
    model.save_pretrained(tmp_path, decoder_only=True)
    with pytest.raises(ValueError, match="encoder="):
        PMTForUniversalSegmentation.from_pretrained(tmp_path)
    assert_same(logits(PMTForUniversalSegmentation.from_pretrained(tmp_path, encoder=model).eval()), logits(model))


def test_authors_files_of_the_decoder_alone_load():
    model = tiny_pmt("dinov3")
    state = {name: t for name, t in convert_to_authors(model).items() if not name.startswith("network.encoder.")}
    loaded = load_authors_checkpoint(state, tiny_pmt_config("dinov3"), reference_backbone=model)
    loaded.set_attn_mask_probs([0, 0])  # those in the file are of training
    assert_same(logits(loaded), logits(model))
    with pytest.raises(ValueError, match="reference_backbone"):
        load_authors_checkpoint(convert_to_authors(model), tiny_pmt_config("dinov3"), reference_backbone=model)


def test_the_hubs_encoder_is_found_at_its_revision(tmp_path, monkeypatch):
    torch.manual_seed(3)
    DINOv3ViTModel(DINOv3ViTConfig(**SIZE, intermediate_size=256, num_register_tokens=4)).save_pretrained(
        tmp_path / "base"
    )
    in_cache(tmp_path / "cache", BASE, list((tmp_path / "base").iterdir()))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    config = PMTConfig.for_backbone(BASE, image_size=64, num_labels=5, **SIZE)
    model = PMTForUniversalSegmentation.from_pretrained_backbone(BASE, config)
    model.set_attn_mask_probs([0] * 6)
    assert (config.encoder_name, model.config.encoder_revision) == (BASE, "0" * 40)
    model.save_pretrained(tmp_path / "decoder", decoder_only=True)
    loaded = PMTForUniversalSegmentation.from_pretrained(tmp_path / "decoder").eval()
    assert_same(logits(loaded), logits(model), rtol=0, atol=1e-5)
    assert loaded.config.encoder_revision == "0" * 40


# --- one encoder, several decoders --------------------------------------------------------------------------------


def test_decoders_share_an_encoder():
    one, other = tiny_pmt(seed=1), tiny_pmt(seed=2)
    with pytest.raises(ValueError, match="differ"):
        one.share_encoder(other)
    other.encoder.load_state_dict(one.encoder.state_dict())
    half = copy.deepcopy(one).to(torch.bfloat16)
    with pytest.raises(ValueError, match="differ"):
        half.share_encoder(one)
    expected = logits(one)
    one.share_encoder(other)
    assert one.encoder is other.encoder
    assert_same(logits(one), expected)
    calls = []
    one.encoder.layers[0].register_forward_hook(lambda *_: calls.append(1))
    with one.encoder.remembering():
        assert_same(logits(one), expected)
        logits(other)
        assert len(calls) == 1
        images = pixels(seed=6)
        before = logits(other, images)[0]
        images.neg_()
        assert not torch.equal(logits(other, images)[0], before)
    assert len(calls) == 3


def test_a_shared_encoder_keeps_its_size():
    one, other = tiny_pmt(), tiny_pmt()
    one.share_encoder(other)
    for model in (one, other):
        with pytest.raises(ValueError, match="96"):
            model.resize(96)
        assert model.config.image_size == model.config.encoder_config.image_size == 64
    assert_same(logits(one), logits(other))


def test_segment_runs_a_shared_encoder_once():
    photos = [Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8)) for seed in (1, 2)]
    models = [tiny_pmt(task=task) for task in ("panoptic", "instance", "semantic")]
    processors = [EoMTImageProcessor(task=model.config.task, size=64) for model in models]
    alone = [eomt.segment(photos, model, processor=p, threshold=0.0) for model, p in zip(models, processors)]
    for model in models:
        model.share_encoder(models[0])
    calls = []
    models[0].encoder.layers[0].register_forward_hook(lambda *_: calls.append(1))
    together = eomt.segment(photos, models, processor=processors, threshold=0.0)
    assert len(calls) == len(photos)
    for found, expected in zip(together, alone):
        for one, other in zip(found, expected):
            assert (one.task, one.labels) == (other.task, other.labels)
            assert np.array_equal(one.masks, other.masks)
    one = eomt.segment(photos[0], models, processor=processors)
    assert [found.task for found in one] == ["panoptic", "instance", "semantic"]
    for wrong in ({"processor": processors[:2]}, {"processor": processors[0]}, {"batch_size": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            eomt.segment(photos, models, **({"processor": processors} | wrong))


# --- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("field", "value"), [
    ("interaction_indices", [0, 4]), ("interaction_indices", [2, 1]), ("interaction_indices", []),
    ("interaction_indices", [-1, 2]), ("lateral_projection", "conv"), ("task", "depth"),
])  # fmt: skip
def test_wrong_fields_are_refused(field, value):
    with pytest.raises(ValueError, match=field):
        tiny_pmt_config(**{field: value})


@pytest.mark.parametrize(("fields", "name"), [
    (None, "encoder_config"),
    ({"model_type": ["eomt"]}, "encoder_config.model_type"),
    ({"model_type": "pmt"}, "encoder_config.model_type"),
    ({"hidden_size": "48"}, "encoder_config.*hidden_size"),
    ({"rope_parameters": "x"}, "encoder_config.*rope_parameters"),
    ({"dtype": "float99"}, "encoder_config.*dtype"),
    ({"task": "depth"}, "encoder_config.*task"),
])  # fmt: skip
def test_wrong_fields_of_the_encoder_in_a_file_are_named(fields, name, tmp_path):
    saved = tiny_pmt_config("dinov3").to_dict()
    saved["encoder_config"] = None if fields is None else saved["encoder_config"] | fields
    (tmp_path / "config.json").write_text(json.dumps(saved))
    with pytest.raises(ValueError, match=f"^{name} "):
        AutoConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("encoder", ["dinov3", PMTConfig()])
def test_an_encoder_of_another_kind_is_refused(encoder):
    with pytest.raises(ValueError, match="encoder_config"):
        PMTConfig(encoder_config=encoder)


def test_other_channels_than_the_encoders_are_refused(tmp_path):
    tiny_pmt().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="num_channels"):
        PMTForUniversalSegmentation.from_pretrained(tmp_path, num_channels=4)
    with pytest.raises(ValueError, match="num_channels"):
        PMTConfig(**{**tiny_pmt_config().to_dict(), "num_channels": 4})
    four = tiny_pmt(num_channels=4)
    four.save_pretrained(tmp_path)
    assert PMTForUniversalSegmentation.from_pretrained(tmp_path).config.num_channels == 4


def test_token_merging_is_refused():
    with pytest.raises(ValueError, match="EoMT"):
        tiny_pmt().set_token_merging((1, 2), 0.9)


def test_eomt_and_pmt_do_not_load_each_other(tmp_path):
    tiny_pmt().save_pretrained(tmp_path / "pmt")
    tiny_model().save_pretrained(tmp_path / "eomt")
    torch.save(convert_to_authors(tiny_pmt(hidden_size=64)), tmp_path / "authors.bin")
    for name in ("pmt", "authors.bin"):
        with pytest.raises(ValueError, match=f"{name} holds"):
            EoMTForUniversalSegmentation.from_pretrained(tmp_path / name)
    with pytest.raises(ValueError, match="PMT"):
        PMTForUniversalSegmentation.from_pretrained(tmp_path / "eomt")
