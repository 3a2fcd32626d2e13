"""Loading and saving with transformers, accelerate and PEFT: types, offloading, adapters, older and damaged files."""

import json
from types import SimpleNamespace

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from safetensors.torch import load_file, save_file
from torch._subclasses import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor
from transformers import AutoModelForUniversalSegmentation, EomtConfig, EomtDinov3Config, EomtForUniversalSegmentation
from transformers import EomtImageProcessor as BuiltInProcessor

from eomt import EoMTConfig, EoMTForUniversalSegmentation, EoMTImageProcessor
from eomt.configuration.eomt import INFERRED
from eomt.modeling_eomt.weights.state_dicts import read_state_dict
from tests.models import BACKBONE_OF_KIND, TINY, tiny_model

PIXELS = torch.linspace(-1, 1, 3 * 64 * 32).view(1, 3, 64, 32)


@pytest.fixture
def their_folder(tmp_path):
    """A checkpoint of transformers' EoMT, in bfloat16."""
    model = EomtForUniversalSegmentation(EomtConfig(**TINY)).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    return tmp_path


def test_dtype_is_the_checkpoints_or_the_given_one(their_folder):
    model = EoMTForUniversalSegmentation.from_pretrained(their_folder, dtype="auto")
    assert model.dtype == torch.bfloat16
    assert model.config.dtype == torch.bfloat16
    assert EoMTForUniversalSegmentation.from_pretrained(their_folder, dtype=torch.float32).dtype == torch.float32


def test_weights_are_as_readable_as_the_configuration(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "config.json").stat().st_mode


def test_probabilities_and_class_weights_stay_fp32_in_half_precision(their_folder):
    config = EoMTForUniversalSegmentation.from_pretrained(their_folder).config
    model = EoMTForUniversalSegmentation._from_config(config, dtype=torch.float16)
    assert model.query.weight.dtype == torch.float16
    assert model.attn_mask_probs.dtype == model.criterion.empty_weight.dtype == torch.float32


@pytest.mark.parametrize("own", [EomtConfig, EomtDinov3Config])
def test_a_configuration_of_transformers_is_converted(own):
    config = own(**TINY)
    model = EoMTForUniversalSegmentation(config)
    assert isinstance(model.config, EoMTConfig)
    assert model.config.model_type == config.model_type
    assert model(PIXELS).class_queries_logits.shape == (1, 7, 6)


def test_from_pretrained_accepts_a_configuration_of_transformers(their_folder):
    config = EomtConfig.from_pretrained(their_folder)
    model = EoMTForUniversalSegmentation.from_pretrained(their_folder, config=config)
    assert isinstance(model.config, EoMTConfig)
    theirs = EomtForUniversalSegmentation.from_pretrained(their_folder).state_dict()
    del theirs["criterion.empty_weight"]  # rounded in the file; the configuration has it
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in theirs.items())


def test_an_adapter_loads_with_its_base_model(their_folder, tmp_path):
    peft = pytest.importorskip("peft")
    model = EoMTForUniversalSegmentation.from_pretrained(their_folder, dtype=torch.float32)
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = EoMTForUniversalSegmentation.from_pretrained(tmp_path / "adapter", dtype=torch.float32).eval()
    with torch.no_grad():
        found, expected = loaded(PIXELS), adapted.eval()(PIXELS)
    torch.testing.assert_close(found.masks_queries_logits, expected.masks_queries_logits)
    file = tmp_path / "adapter/adapter_config.json"
    fields = json.loads(file.read_text())
    del fields["base_model_name_or_path"]
    file.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match="base_model_name_or_path"):
        EoMTForUniversalSegmentation.from_pretrained(tmp_path / "adapter")


@pytest.mark.parametrize("kind", list(BACKBONE_OF_KIND))
@torch.no_grad()
def test_offloaded_weights(kind, tmp_path):
    """Every weight is read in the forward of its module, so hooks can load it before."""
    expected = tiny_model(kind)(PIXELS).masks_queries_logits
    on_host = cpu_offload(tiny_model(kind), execution_device=torch.device("cpu"))
    assert torch.equal(on_host(PIXELS).masks_queries_logits, expected)
    on_disk = tiny_model(kind)
    disk_offload(on_disk, tmp_path / "offload", execution_device=torch.device("cpu"))
    assert on_disk.query.weight.is_meta
    assert torch.equal(on_disk(PIXELS).masks_queries_logits, expected)


def placed(on_disk: tuple[str, ...]) -> dict[str, str]:
    """A device map: some parts on disk, the others on the CPU."""
    parts = ["embeddings", *(f"layers.{i}" for i in range(4)), "layernorm", "query", "upscale_block", "mask_head"]
    parts += ["class_predictor", "criterion", "attn_mask_probs"]
    return {part: "disk" if part in on_disk else "cpu" for part in parts}


def test_a_device_map_may_name_the_disk(tmp_path):
    model = tiny_model("dinov2")
    model.save_pretrained(tmp_path / "model")
    place = {
        "device_map": placed(("embeddings", "layers.0", "query", "upscale_block", "criterion")),
        "offload_folder": tmp_path / "offload",
    }
    loaded = EoMTForUniversalSegmentation.from_pretrained(tmp_path / "model", **place)
    with torch.no_grad():
        assert torch.equal(loaded(PIXELS).masks_queries_logits, model(PIXELS).masks_queries_logits)
    place["device_map"] = placed(("embeddings",))
    with pytest.raises(ValueError, match="image_size 128"):
        EoMTForUniversalSegmentation.from_pretrained(tmp_path / "model", **place, image_size=128)


@pytest.mark.parametrize("kind", ["deit3", "eva02"])
def test_without_registers_there_is_no_empty_parameter(kind):
    """FSDP cannot shard an empty parameter; the hub's files keep the empty tensor."""
    model = tiny_model(kind)
    assert all(parameter.numel() for parameter in model.parameters())
    assert model.state_dict()["embeddings.register_tokens"].shape == (1, 0, 48)


# --- older and damaged files, quantized weights, tensor parallelism, subfolders --------------------------------------


def write_older_layout(folder, state, sharded: bool) -> None:
    """The SwiGLU in transformers 4.56 to 5.17: `weights_in` is gate and up, `weights_out` the last projection."""
    older = {name.replace("mlp.down_proj", "mlp.weights_out"): tensor for name, tensor in state.items()}
    for name in [name for name in older if ".mlp.gate_proj." in name]:
        halves = [older.pop(name), older.pop(name.replace("gate_proj", "up_proj"))]
        older[name.replace("gate_proj", "weights_in")] = torch.cat(halves)
    (folder / "model.safetensors").unlink()
    if not sharded:
        save_file(older, folder / "model.safetensors", {"format": "pt"})
        return
    names = sorted(older)
    shards = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for file, members in shards.items():
        save_file({name: older[name] for name in members}, folder / file, {"format": "pt"})
    places = {name: file for file, members in shards.items() for name in members}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_older_layout_of_swiglu_loads(sharded, dtype, tmp_path):
    model = tiny_model("dinov2_swiglu").to(dtype)
    model.save_pretrained(tmp_path / "hub")
    expected = model.state_dict()
    write_older_layout(tmp_path / "hub", expected, sharded)
    loaded, found = EoMTForUniversalSegmentation.from_pretrained(tmp_path / "hub", output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    state = loaded.state_dict()
    assert all(torch.equal(state[name], expected[name]) for name in expected if name != "criterion.empty_weight")
    loaded.save_pretrained(tmp_path / "again")
    assert load_file(tmp_path / "again/model.safetensors").keys() == expected.keys()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_class_weights_follow_the_configuration(dtype, tmp_path):
    tiny_model().to(dtype).save_pretrained(tmp_path)
    as_saved = EoMTForUniversalSegmentation.from_pretrained(tmp_path)
    assert torch.equal(as_saved.criterion.empty_weight, torch.tensor([1, 1, 1, 1, 1, 0.1]))
    changed = EoMTForUniversalSegmentation.from_pretrained(tmp_path, no_object_weight=0.5)
    assert torch.equal(changed.criterion.empty_weight, torch.tensor([1, 1, 1, 1, 1, 0.5]))


@pytest.mark.parametrize("content", ["", "[1]", "{}", '{"weight_map": 3}', '{"weight_map": {"query.weight": "gone"}}'])
def test_a_damaged_index_is_refused(content, tmp_path):
    tiny_model().save_pretrained(tmp_path, max_shard_size="50KB")
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ValueError, match="index"):
        EoMTForUniversalSegmentation.from_pretrained(tmp_path)


def test_quantized_weights_are_refused(tmp_path):
    state = {"weight": torch.zeros(2, dtype=torch.int8)}
    with pytest.raises(ValueError, match="int8"):
        read_state_dict(state)
    save_file({"weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "bitsandbytes"}}')
    with pytest.raises(ValueError, match="quantized"):
        read_state_dict(tmp_path)


def test_weights_quantized_in_place_are_not_saved(tmp_path):
    model = tiny_model()
    weight = model.layers[0].mlp.fc1.weight.data
    model.layers[0].mlp.fc1.weight = torch.nn.Parameter(TwoTensor(weight, weight))  # a subclass, like torchao's
    with pytest.raises(ValueError, match="TwoTensor"):
        model.save_pretrained(tmp_path)


@pytest.mark.parametrize("arguments", [
    {"tp_plan": {"layers.*.mlp.fc1": "colwise"}}, {"tp_size": 2},
    {"distributed_config": SimpleNamespace(tp_plan="auto", tp_size=None)},
])  # fmt: skip
def test_tensor_parallel_plans_are_refused(arguments, their_folder):
    with pytest.raises(ValueError, match="tensor parallel"):
        EoMTForUniversalSegmentation.from_pretrained(their_folder, **arguments)


def test_a_subfolder_loads_as_a_folder(tmp_path):
    """Also the processor there: its windows decide that the task is semantic."""
    folder = tmp_path / "subfolder"
    EomtForUniversalSegmentation(EomtConfig(**TINY)).save_pretrained(folder)
    BuiltInProcessor(do_split_image=True, size={"shortest_edge": 64}).save_pretrained(folder)
    place = {"pretrained_model_name_or_path": tmp_path, "subfolder": "subfolder"}
    assert EoMTImageProcessor.from_pretrained(**place).task == "semantic"
    assert EoMTConfig.from_pretrained(**place).task == "semantic"
    for loader in (EoMTForUniversalSegmentation, AutoModelForUniversalSegmentation):
        model = loader.from_pretrained(**place)
        assert model.config.task == "semantic"
        model.save_pretrained(tmp_path / "saved")
        assert EoMTConfig.get_config_dict(tmp_path / "saved")[0].keys().isdisjoint({INFERRED})
        assert loader.from_pretrained(**place, task="instance").config.task == "instance"


# --- several devices -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("kind", list(BACKBONE_OF_KIND))
@torch.no_grad()
def test_parts_may_be_on_several_devices(kind, masked):
    """Accelerate's hooks on fake tensors, which refuse two devices in one operation."""
    on_first = ("embeddings", "layers.0", "layers.2", "mask_head")
    model = tiny_model(kind, masked_inference=masked)
    with FakeTensorMode() as mode:
        parts = {name: part for name, part in model.named_children() if name != "layers"}
        parts |= {f"layers.{number}": layer for number, layer in enumerate(model.layers)}
        for name, part in parts.items():
            device = torch.device("cuda", 0 if name in on_first else 1)
            for module in part.modules():
                for tensors in (module._parameters, module._buffers):
                    for key, tensor in tensors.items():
                        if tensor is not None:
                            tensors[key] = mode.from_tensor(tensor).to(device)
            add_hook_to_module(part, AlignDevicesHook(device))
        model._buffers["attn_mask_probs"] = mode.from_tensor(model.attn_mask_probs).to("cuda:0")
        model._mask_probs_version = model._current_version()
        pixels = torch.empty(1, 3, 64, 96, device="cuda:0")
        out = model(pixels)
        assert out.masks_queries_logits.shape == (1, 7, 16, 24)
        assert out.class_queries_logits.device == out.masks_queries_logits.device
