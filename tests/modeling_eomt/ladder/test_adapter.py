"""ViT-Adapter equals its authors' modules on golden numbers, and its attention equals the sum written out."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open

from eomt.modeling_eomt.ladder import LadderConfig
from eomt.modeling_eomt.ladder.adapter import DeformableAttention, ViTAdapter, centers

GOLDEN = Path(__file__).parents[2] / "golden/adapter.safetensors"
CLOSE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(scope="module")
def golden():
    with safe_open(GOLDEN, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  safe_open is not a dict


def test_equals_the_authors_modules(golden):
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
        ours = ours if name == "c1" else ours.flatten(2).transpose(1, 2)
        torch.testing.assert_close(ours, golden[f"spm.{name}"], **CLOSE)
    for index in range(4):
        torch.testing.assert_close(after_tokens[index], golden[f"tokens_after.{index}"], **CLOSE)
        torch.testing.assert_close(after_pyramid[index], golden[f"pyramid_after.{index}"], **CLOSE)
    for name, ours in zip(("f4", "f8", "f16", "f32"), maps):
        torch.testing.assert_close(ours, golden[name], **CLOSE)


def test_deformable_attention_equals_a_loop():
    torch.manual_seed(0)
    shapes, heads, points = [(4, 6), (2, 3)], 2, 3
    config = LadderConfig(hidden_size=8, num_attention_heads=heads, deform_num_points=points, deform_ratio=0.5)
    attention = DeformableAttention(config, num_levels=2)
    queries, features = torch.randn(1, 5, 8), torch.randn(1, 30, 8)
    reference = torch.rand(1, 5, 1, 2)
    with torch.no_grad():
        values = attention.value_proj(features)[0].unflatten(-1, (heads, -1))  # [cells, A, E]
        offsets = attention.sampling_offsets(queries)[0].view(5, heads, 2, points, 2)
        weights = attention.attention_weights(queries)[0].view(5, heads, -1).softmax(-1).view(5, heads, 2, points)
        read = torch.zeros(5, heads, 2)
        for query in range(5):
            for head in range(heads):
                first = 0
                for level, (height, width) in enumerate(shapes):
                    for point in range(points):
                        x = reference[0, query, 0, 0] * width + offsets[query, head, level, point, 0] - 0.5
                        y = reference[0, query, 0, 1] * height + offsets[query, head, level, point, 1] - 0.5
                        for column in (int(x.floor()), int(x.floor()) + 1):
                            for row in (int(y.floor()), int(y.floor()) + 1):
                                if 0 <= column < width and 0 <= row < height:
                                    share = (1 - (x - column).abs()) * (1 - (y - row).abs())
                                    value = values[first + row * width + column, head]
                                    read[query, head] += weights[query, head, level, point] * share * value
                    first += height * width
        expected = attention.output_proj(read.flatten(1))
        torch.testing.assert_close(attention(queries, features, shapes, reference)[0], expected, **CLOSE)


def test_centers_are_x_then_y():
    assert centers([(1, 2)], torch.zeros(1))[0, :, 0].tolist() == [[0.25, 0.5], [0.75, 0.5]]
