"""Equal to transformers' EoMT: logits of the same weights, fields, and checkpoints in both directions, bitwise."""

import json
import subprocess
import sys

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoModel,
    AutoModelForImageSegmentation,
    AutoModelForUniversalSegmentation,
    EomtConfig,
    EomtDinov3Config,
    EomtDinov3ForUniversalSegmentation,
    EomtForUniversalSegmentation,
)
from transformers.utils import logging

from eomt import EoMTConfig, EoMTDINOv3Config, EoMTForUniversalSegmentation, EoMTImageProcessor
from tests.models import TINY, randomize, tiny_model

DINOV3 = (EomtDinov3Config, EomtDinov3ForUniversalSegmentation, EoMTDINOv3Config)
CASES = {
    "eomt": (EomtConfig, EomtForUniversalSegmentation, EoMTConfig, {}),
    "eomt_swiglu": (EomtConfig, EomtForUniversalSegmentation, EoMTConfig, {"use_swiglu_ffn": True}),
    "eomt_dinov3": (*DINOV3, {"intermediate_size": 192}),
    "eomt_dinov3_gated": (*DINOV3, {"intermediate_size": 96, "use_gated_mlp": True}),
}


def built_in(case):
    config_class, model_class, our_config_class, extra = CASES[case]
    torch.manual_seed(0)
    model = model_class(config_class(**TINY, **extra)).eval()
    randomize(model)
    return model, our_config_class(**TINY, **extra)


def state_of(built_in_model) -> dict:
    """Tensors under transformers' names from 5.18 on. Before, gate and up of a SwiGLU were one `weights_in`."""
    state = {}
    for name, tensor in built_in_model.state_dict().items():
        if "mlp.weights_in" in name:
            halves = (name.replace("weights_in", "gate_proj"), name.replace("weights_in", "up_proj"))
            state |= zip(halves, tensor.chunk(2))
        else:
            state[name.replace("mlp.weights_out", "mlp.down_proj")] = tensor
    return state


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("masked", [1.0, 0.0])
@torch.no_grad()
def test_same_logits(case, masked):
    theirs, config = built_in(case)
    ours = EoMTForUniversalSegmentation(config).eval()
    ours.load_state_dict(state_of(theirs))
    theirs.attn_mask_probs.fill_(masked)
    ours.set_attn_mask_probs([masked] * 2)
    pixels = torch.randn(2, 3, 64, 64)
    expected, out = theirs(pixels), ours(pixels)
    torch.testing.assert_close(out.masks_queries_logits, expected.masks_queries_logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(out.class_queries_logits, expected.class_queries_logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(out.last_hidden_state, expected.last_hidden_state, rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", ["eomt", "eomt_swiglu", "eomt_dinov3"])
def test_fields_and_defaults_are_the_built_ins(case):
    config_class, _, our_config_class, _ = CASES[case]
    theirs, ours = config_class().to_dict(), our_config_class().to_dict()
    assert {key: ours.get(key) for key in theirs} == theirs


@pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForUniversalSegmentation, AutoModelForImageSegmentation])
@pytest.mark.parametrize("case", CASES)
def test_checkpoints_of_the_built_in_load_here(case, auto_class, tmp_path):
    theirs, _ = built_in(case)
    theirs.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    ours = auto_class.from_pretrained(tmp_path)
    assert type(ours) is EoMTForUniversalSegmentation
    expected, state = state_of(theirs), ours.state_dict()
    assert set(state) == set(expected)
    assert all(torch.equal(tensor, expected[key]) for key, tensor in state.items())


LOAD_ELSEWHERE = """
import pathlib, sys, torch
from transformers import AutoModelForUniversalSegmentation
for folder in pathlib.Path(sys.argv[1]).iterdir():
    model = AutoModelForUniversalSegmentation.from_pretrained(folder, dtype="auto")
    assert type(model).__module__.startswith("transformers."), type(model)
    torch.save(model.state_dict(), folder / "state.pt")
assert "eomt" not in sys.modules
"""
SAVED = [("eomt", "float32"), ("eomt_dinov3", "float32"), ("eomt", "bfloat16")]
if not any("weights_in" in name for name in built_in("eomt_swiglu")[0].state_dict()):  # it reads the layout of 5.18
    SAVED.append(("eomt_swiglu", "float32"))


def ours_in_annealing(case, dtype):
    _, config = built_in(case)
    model = EoMTForUniversalSegmentation(config)
    model.set_attn_mask_probs([0.25, 0.75])
    return model.to(getattr(torch, dtype))


@pytest.fixture(scope="module")
def loaded_elsewhere(tmp_path_factory):
    """Folders CASE-DTYPE of our checkpoints. A process without this package loaded each, and saved it to `state.pt`."""
    folder = tmp_path_factory.mktemp("saved")
    for case, dtype in SAVED:
        ours_in_annealing(case, dtype).save_pretrained(folder / f"{case}-{dtype}", max_shard_size="50KB")
    script = [sys.executable, "-c", LOAD_ELSEWHERE, str(folder)]
    done = subprocess.run(script, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize(("case", "dtype"), SAVED)
def test_our_checkpoints_load_in_plain_transformers(case, dtype, loaded_elsewhere):
    folder = loaded_elsewhere / f"{case}-{dtype}"
    theirs = torch.load(folder / "state.pt", weights_only=True)
    for key, tensor in ours_in_annealing(case, dtype).state_dict().items():
        assert torch.equal(tensor, theirs[key].to(tensor.dtype)), key
    assert AutoModel.from_pretrained(folder).attn_mask_probs.tolist() == [0.25, 0.75]
    assert json.loads((folder / "config.json").read_text())["architectures"][0].startswith("Eomt")


@pytest.mark.parametrize(("kind", "fields", "loads"), [
    ("dinov2", {}, True),
    ("dinov2", {"image_size": (64, 64), "patch_size": (16, 16), "mlp_ratio": 4.0}, True),
    ("dinov3", {"image_size": [64, 64], "patch_size": [16, 16]}, True),
    ("deit3", {}, True),
    ("dinov2", {"image_size": (64, 128)}, False),
    ("dinov3", {"image_size": (64, 128)}, False),
    ("dinov2", {"patch_size": (16, 8)}, False),
    ("dinov2", {"mlp_ratio": 2.5}, False),
    ("eva02", {}, False),
], ids=str)  # fmt: skip
def test_saving_warns_if_plain_transformers_cannot_load_it(kind, fields, loads, tmp_path, caplog):
    """Without a warning, transformers' EoMT has the same logits. With one, it cannot load the checkpoint."""
    logger = logging.get_logger("eomt.modeling_eomt.pretrained")
    logger.warning_once.cache_clear()
    model = tiny_model(kind, **fields)
    model.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    assert caplog.text.count("loads with this package only") == (not loads)
    built_in = EomtDinov3ForUniversalSegmentation if kind == "dinov3" else EomtForUniversalSegmentation
    pixels = torch.randn(1, 3, 64, 64)
    if loads:
        with torch.no_grad():
            expected = built_in.from_pretrained(tmp_path).eval()(pixels).class_queries_logits
            torch.testing.assert_close(model(pixels).class_queries_logits, expected, rtol=0, atol=1e-5)
    elif kind != "eva02":
        with pytest.raises((TypeError, ValueError, RuntimeError, StrictDataclassError)):
            built_in.from_pretrained(tmp_path)


@pytest.mark.parametrize("kind", [EoMTConfig, EoMTForUniversalSegmentation, EoMTImageProcessor])
def test_custom_code_is_refused_before_anything_is_written(kind):
    with pytest.raises(ValueError, match="custom code"):
        kind.register_for_auto_class()
    assert not kind._auto_class
