"""ViT-Adapter has the numbers of its authors' modules at every stage."""

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open

from eomt.modeling_eomt.ladder import LadderConfig
from eomt.modeling_eomt.ladder.adapter import ViTAdapter
from tests.models import GOLDEN

CLOSE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(scope="module")
def golden():
    with safe_open(GOLDEN / "adapter.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  safe_open is not a dict


def test_every_stage_equals_the_authors(golden):
    adapter = ViTAdapter(LadderConfig(hidden_size=32, num_attention_heads=2, stem_width=8)).eval()
    weights = {
        name.removeprefix("weights.").replace("dwconv.dwconv", "dwconv"): tensor
        for name, tensor in golden.items()
        if name.startswith("weights.") and not name.startswith("weights.blocks.")
    }
    adapter.load_state_dict(weights)
    after_tokens, after_pyramid = [], []

    def block(index):
        def run(tokens):
            weight, bias = (golden[f"weights.blocks.{index}.{kind}"] for kind in ("weight", "bias"))
            after_tokens.append(tokens + F.linear(tokens, weight, bias).tanh())
            return after_tokens[-1]

        return run

    for interaction in adapter.interactions:
        interaction.register_forward_hook(lambda module, inputs, outputs: after_pyramid.append(outputs[1]))
    with torch.no_grad():
        prior = adapter.spm(golden["pixels"])
        maps, _ = adapter(golden["pixels"], golden["tokens"], [block(index) for index in range(4)])
    for name, ours in zip(("c1", "c2", "c3", "c4"), prior):
        if name != "c1":
            ours = ours.flatten(2).transpose(1, 2)
        torch.testing.assert_close(ours, golden[f"spm.{name}"], **CLOSE)
    for index in range(4):
        torch.testing.assert_close(after_tokens[index], golden[f"tokens_after.{index}"], **CLOSE)
        torch.testing.assert_close(after_pyramid[index], golden[f"pyramid_after.{index}"], **CLOSE)
    for name, ours in zip(("f4", "f8", "f16", "f32"), maps):
        torch.testing.assert_close(ours, golden[name], **CLOSE)
