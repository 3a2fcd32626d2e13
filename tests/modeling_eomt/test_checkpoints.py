"""Authors' checkpoints: every container, differences to DINOv3, class heads, and files that do not fit."""

import json
import logging
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from eomt import EoMTForUniversalSegmentation
from eomt.modeling_eomt import convert_to_authors, load_authors_checkpoint
from eomt.modeling_eomt.weights.state_dicts import write_state_dict
from tests.models import GOLDEN, golden_config, tiny_config, tiny_model

ENCODER = "network.encoder.backbone."


def golden_state(kind="dinov2"):
    return load_file(GOLDEN / f"{kind}.checkpoint.safetensors")


def assert_same_weights(a, b):
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("container", ["safetensors", "folder", "compiled", "lightning"])
def test_every_container_loads_the_same_model(container, tmp_path):
    state, config = golden_state(), golden_config("dinov2")
    expected = load_authors_checkpoint(state, config)
    source = tmp_path / "model.ckpt"
    if container == "safetensors":
        source = tmp_path / "model.safetensors"
        save_file(state, source)
    elif container == "folder":
        source = tmp_path
        torch.save(state, tmp_path / "pytorch_model.bin")
    elif container == "compiled":
        torch.save({key.replace("network.", "network._orig_mod.", 1): t for key, t in state.items()}, source)
    else:
        state = state | {"criterion.empty_weight": torch.ones(12)}
        torch.save({"state_dict": state, "epoch": 11, "global_step": 5}, source)
    model = load_authors_checkpoint(source, config)
    assert_same_weights(model, expected)
    assert not model.training


def test_a_head_for_other_classes_is_initialized(caplog):
    state, config = golden_state(), golden_config("dinov2")
    config = type(config).from_dict(config.to_dict() | {"id2label": dict(enumerate("abc")), "label2id": None})
    with pytest.raises(ValueError, match=r"network\.class_head\.weight \(12, 24\)"):
        load_authors_checkpoint(state, config)
    logger = logging.getLogger("transformers")
    logger.propagate = True
    try:
        torch.manual_seed(3)
        model = load_authors_checkpoint(state, config, load_class_head=False)
    finally:
        logger.propagate = False
    assert "3 labels" in caplog.text
    assert model.class_predictor.weight.shape == (4, 24)
    torch.manual_seed(3)
    assert torch.equal(model.class_predictor.weight, EoMTForUniversalSegmentation(config).class_predictor.weight)
    assert torch.equal(model.query.weight, state["network.q.weight"])


def test_the_class_head_may_be_absent_from_the_file():
    state = {key: tensor for key, tensor in golden_state().items() if "class_head" not in key}
    with pytest.raises(ValueError, match=r"network\.class_head\.bias, network\.class_head\.weight"):
        load_authors_checkpoint(state, golden_config("dinov2"))
    model = load_authors_checkpoint(state, golden_config("dinov2"), load_class_head=False)
    assert torch.equal(model.mask_head.fc1.weight, state["network.mask_head.0.weight"])


def test_one_error_lists_all_keys_that_do_not_fit():
    state = golden_state()
    del state["network.q.weight"], state["network.mask_head.0.bias"]
    state["network.upscale.7.norm.bias"] = torch.zeros(24)
    state[f"{ENCODER}blocks.0.norm1.weight"] = torch.zeros(25)
    with pytest.raises(ValueError, match="network") as caught:
        load_authors_checkpoint(state, golden_config("dinov2"))
    missing, unexpected, misshaped = str(caught.value).splitlines()[1:]
    assert missing.endswith(" (2): network.mask_head.0.bias, network.q.weight")
    assert unexpected.endswith(" (1): network.upscale.7.norm.bias")
    assert all(text in misshaped for text in (f"{ENCODER}blocks.0.norm1.weight", "(25,)", "(24,)"))


def test_keys_of_another_family_are_listed():
    with pytest.raises(ValueError, match=r"(?s)missing \(\d+\).*… and \d+ more.*unexpected"):
        load_authors_checkpoint(golden_state("eva02"), golden_config("dinov3"))


@pytest.mark.parametrize("size", [(96, 64), (32, 128)])  # the second has as many patches as the model's 64 × 64
def test_positions_are_resampled_to_the_size_of_the_configuration(size):
    model = tiny_model()
    resized = load_authors_checkpoint(convert_to_authors(model), tiny_config(image_size=size))
    model.resize(size)
    assert_same_weights(resized, model)


def test_the_grid_of_a_file_of_eomt_convert_is_known(tmp_path):
    model = tiny_model(image_size=(32, 128))
    config = json.dumps(model.config.to_dict())
    write_state_dict(tmp_path / "model.safetensors", convert_to_authors(model), config)
    assert_same_weights(load_authors_checkpoint(tmp_path / "model.safetensors", model.config), model)


class Attack:
    def __reduce__(self):
        return os.mkdir, ("attacked",)


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_pickle_that_runs_code_is_refused(wrapped, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = golden_state() | {"evil": Attack()}
    torch.save({"state_dict": state} if wrapped else state, "evil.ckpt")
    with pytest.raises(ValueError, match="mkdir"):
        load_authors_checkpoint("evil.ckpt", golden_config("dinov2"))
    assert not os.path.exists("attacked")


@pytest.mark.parametrize(("name", "content"), [
    ("a.safetensors", b""), ("a.safetensors", b"x" * 99), ("a.bin", b""), ("a.bin", b"hello"), ("a.bin", "cut"),
    ("a.bin", [1]), ("a.bin", {}),
])  # fmt: skip
def test_a_file_without_a_state_dict_is_refused(name, content, tmp_path):
    file = tmp_path / name
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(golden_state() if content == "cut" else content, file)
    if content == "cut":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"a\.bin|a\.safetensors|tensor"):
        load_authors_checkpoint(file, golden_config("dinov2"))


# --- differences to DINOv3 ---------------------------------------------------------------------------------------


def reference_of(model) -> dict:
    """The encoder of an EoMT under the names of transformers' DINOv3ViTModel."""
    reference = {}
    for key, tensor in convert_to_authors(model).items():
        if key.startswith(ENCODER):
            name = key.removeprefix(ENCODER).replace("patch_embed.", "embeddings.").replace("blocks.", "layer.")
            reference[name] = tensor
    return reference


@pytest.mark.parametrize("buffers", ["differences", "absolute", "absent"])
def test_differences_are_added_to_the_reference_and_buffers_overwritten(buffers):
    trained, pretrained = tiny_model("dinov3", seed=1), tiny_model("dinov3", seed=2)
    trained.set_attn_mask_probs([0.0, 0.5])
    state = convert_to_authors(trained, delta_from=reference_of(pretrained))
    absolute = convert_to_authors(trained)
    for key, tensor in state.items():  # the authors' description
        if key.startswith(ENCODER):
            expected = absolute[key] - convert_to_authors(pretrained)[key]
        elif "pixel_" in key:
            expected = torch.zeros(1, 3, 1, 1)
        elif key == "network.attn_mask_probs":
            expected = torch.tensor([-1.0, -0.5])
        else:
            expected = absolute[key]
        assert torch.equal(tensor, expected), key
    pixel = ("network.encoder.pixel_mean", "network.encoder.pixel_std")
    if buffers != "differences":
        state["network.attn_mask_probs"] = absolute["network.attn_mask_probs"]
        for key in pixel:
            state[key] = absolute[key]
    if buffers == "absent":
        state = {key: tensor for key, tensor in state.items() if key not in pixel}
    model = load_authors_checkpoint(state, trained.config, reference_backbone=reference_of(pretrained))
    for name, tensor in trained.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=0, atol=1e-6)
    assert model.attn_mask_probs.tolist() == [0.0, 0.5]


def test_the_reference_may_be_a_file_or_a_model(tmp_path):
    config = DINOv3ViTConfig(
        hidden_size=48, intermediate_size=192, num_hidden_layers=4, num_attention_heads=4, num_register_tokens=4
    )
    backbone, trained = DINOv3ViTModel(config), tiny_model("dinov3")
    backbone.save_pretrained(tmp_path)
    states = [convert_to_authors(trained, delta_from=source) for source in (backbone, tmp_path, backbone.state_dict())]
    for state in states[1:]:
        assert all(torch.equal(state[key], states[0][key]) for key in states[0])
    again = load_authors_checkpoint(states[0], trained.config, reference_backbone=tmp_path)
    torch.testing.assert_close(again.layers[0].mlp.up_proj.weight, trained.layers[0].mlp.up_proj.weight)


def test_a_reference_for_weights_without_differences_is_refused():
    trained = tiny_model("dinov3")
    reference = {key: tensor * 0.9 for key, tensor in reference_of(trained).items()}
    with pytest.raises(ValueError, match="reference_backbone"):
        load_authors_checkpoint(convert_to_authors(trained), trained.config, reference_backbone=reference)
