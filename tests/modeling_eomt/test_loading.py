"""Every way in which transformers, accelerate and PEFT hand a checkpoint or a configuration to the model."""

import json

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from transformers import EomtConfig, EomtDinov3Config, EomtForUniversalSegmentation

from eomt import EoMTConfig, EoMTForUniversalSegmentation
from tests.models import BACKBONE_OF_KIND, tiny_model

TINY = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "num_blocks": 1, "num_queries": 3}
PIXELS = torch.linspace(-1, 1, 3 * 64 * 32).view(1, 3, 64, 32)


@pytest.fixture
def their_folder(tmp_path):
    """A checkpoint that plain transformers saved, in bfloat16."""
    model = EomtForUniversalSegmentation(EomtConfig(**TINY, image_size=64, num_labels=4)).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    return tmp_path


def test_dtype_auto(their_folder):
    model = EoMTForUniversalSegmentation.from_pretrained(their_folder, dtype="auto")
    assert model.dtype == torch.bfloat16
    assert model.config.dtype == torch.bfloat16
    assert EoMTForUniversalSegmentation.from_pretrained(their_folder, dtype=torch.float32).dtype == torch.float32


def test_probabilities_and_class_weights_stay_fp32_in_a_model_made_in_half_precision(their_folder):
    config = EoMTForUniversalSegmentation.from_pretrained(their_folder).config
    model = EoMTForUniversalSegmentation._from_config(config, dtype=torch.float16)
    assert model.query.weight.dtype == torch.float16
    assert model.attn_mask_probs.dtype == model.criterion.empty_weight.dtype == torch.float32


@pytest.mark.parametrize("own", [EomtConfig, EomtDinov3Config])
def test_the_built_ins_configuration(own):
    config = own(**TINY, image_size=64, num_labels=4)
    model = EoMTForUniversalSegmentation(config)
    assert isinstance(model.config, EoMTConfig)
    assert model.config.model_type == config.model_type
    assert model(PIXELS).class_queries_logits.shape == (1, 3, 5)


def test_from_pretrained_with_the_built_ins_configuration(their_folder):
    config = EomtConfig.from_pretrained(their_folder)
    model = EoMTForUniversalSegmentation.from_pretrained(their_folder, config=config)
    assert isinstance(model.config, EoMTConfig)
    theirs = EomtForUniversalSegmentation.from_pretrained(their_folder).state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in model.state_dict().items())


def test_adapter_folder(their_folder, tmp_path):
    peft = pytest.importorskip("peft")
    model = EoMTForUniversalSegmentation.from_pretrained(their_folder, dtype=torch.float32)
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = EoMTForUniversalSegmentation.from_pretrained(tmp_path / "adapter", dtype=torch.float32).eval()
    with torch.no_grad():
        found, expected = loaded(PIXELS.expand(1, 3, 64, 32)), adapted.eval()(PIXELS)
    torch.testing.assert_close(found.masks_queries_logits, expected.masks_queries_logits)
    names_nothing = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    del names_nothing["base_model_name_or_path"]
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(names_nothing))
    with pytest.raises(ValueError, match="names no base_model_name_or_path"):
        EoMTForUniversalSegmentation.from_pretrained(tmp_path / "adapter")


@pytest.mark.parametrize("kind", list(BACKBONE_OF_KIND))
@torch.no_grad()
def test_offloaded_weights(kind, tmp_path):
    """Every weight is read inside the forward of the module that holds it, so hooks can bring it from elsewhere."""
    expected = tiny_model(kind)(PIXELS).masks_queries_logits
    on_host = cpu_offload(tiny_model(kind), execution_device=torch.device("cpu"))
    assert torch.equal(on_host(PIXELS).masks_queries_logits, expected)
    on_disk = tiny_model(kind)
    disk_offload(on_disk, tmp_path / "offload", execution_device=torch.device("cpu"))
    assert on_disk.query.weight.is_meta
    assert torch.equal(on_disk(PIXELS).masks_queries_logits, expected)


def test_device_map_with_disk(tmp_path):
    model = tiny_model("dinov2")
    model.save_pretrained(tmp_path / "model")
    places = dict.fromkeys(("embeddings", "layers.0", "query", "upscale_block", "criterion"), "disk")
    places |= dict.fromkeys(
        ("layers.1", "layers.2", "layers.3", "layernorm", "mask_head", "class_predictor", "attn_mask_probs"), "cpu"
    )
    loaded = EoMTForUniversalSegmentation.from_pretrained(
        tmp_path / "model", device_map=places, offload_folder=tmp_path / "offload"
    )
    with torch.no_grad():
        assert torch.equal(loaded(PIXELS).masks_queries_logits, model(PIXELS).masks_queries_logits)


@pytest.mark.parametrize("kind", ["deit3", "eva02"])
def test_without_registers_there_is_no_empty_parameter(kind):
    """FSDP cannot shard an empty parameter; the hub's files keep the empty tensor."""
    model = tiny_model(kind)
    assert all(parameter.numel() for parameter in model.parameters())
    assert model.state_dict()["embeddings.register_tokens"].shape == (1, 0, 48)
