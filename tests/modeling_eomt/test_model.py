"""EoMT: sizes, masking, targets, errors, and transformers' features: checkpointing, hidden states, compilation, …"""

import copy
import json
from collections.abc import Callable
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AttentionInterface

from eomt import EoMTForUniversalSegmentation
from eomt.modeling_eomt import heads, layers
from eomt.speed.measure import extra_cpu_bytes
from tests.models import BACKBONE_OF_KIND, targets, tiny_config, tiny_model

KINDS = list(BACKBONE_OF_KIND)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(64, 64), (32, 128), (96, 64), (16, 16)])
@torch.no_grad()
def test_any_multiple_of_the_patch_size(kind, size):
    model = tiny_model(kind)
    out = model(torch.randn(1, 3, *size))
    assert out.masks_queries_logits.shape == (1, 7, size[0] // 4, size[1] // 4)
    assert out.class_queries_logits.shape == (1, 7, 6)
    assert len(out.auxiliary_logits) == 2


@torch.no_grad()
def test_position_matters_at_another_aspect_ratio():
    """A 32 × 128 image has as many patches as a 64 × 64 one, but other positions."""
    model = tiny_model()
    tall, wide = torch.randn(1, 3, 128, 32), torch.randn(1, 3, 32, 128)
    resampled = model.embeddings(wide)[:, 5:]
    as_trained = model.embeddings.patch_embeddings(wide).flatten(2).transpose(1, 2)
    as_trained = as_trained + model.embeddings.position_embeddings.weight
    assert (resampled - as_trained).abs().max() > 1e-2
    assert model.embeddings(tall).shape == model.embeddings(wide).shape


@pytest.mark.parametrize(
    ("shape", "word"), [((1, 3, 60, 64), "60 × 64"), ((1, 1, 64, 64), "batch"), ((3, 64, 64), "batch")]
)
def test_wrong_images_are_refused(shape, word):
    with pytest.raises(ValueError, match=word):
        tiny_model()(torch.zeros(shape))


# --- masking -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_each_block_has_its_own_mask():
    """With masking in the first joint block only, the second has no mask."""
    model = tiny_model()
    pixels = torch.randn(2, 3, 64, 64)
    model.set_attn_mask_probs([1, 0])
    seen = []
    for layer in model.layers[-2:]:
        layer.register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    out = model(pixels)
    assert seen[0].shape == (2, 1, 7, 7 + 5 + 16)
    assert seen[0].dtype == torch.bool
    assert seen[1] is None
    assert len(out.auxiliary_logits) == 1


def test_the_hosts_copy_follows_the_buffer():
    model = tiny_model()
    assert model._masked_blocks == (True, True)
    model.set_attn_mask_probs([0.5, 0])
    assert model.attn_mask_probs.tolist() == [0.5, 0]
    assert model._masked_blocks == (True, False)
    other = tiny_model()
    other.load_state_dict(model.state_dict())
    assert other._masked_blocks == (True, False)
    with torch.no_grad():
        model.attn_mask_probs.zero_()  # as users of transformers' EoMT do
        assert model(torch.zeros(1, 3, 64, 64)).auxiliary_logits is None
    assert model._masked_blocks == (False, False)
    with pytest.raises(ValueError, match=r"\[1\.0, 1\.0, 1\.0\]"):
        model.set_attn_mask_probs([1, 1, 1])
    with pytest.raises(ValueError, match=r"\[1\.0, 1\.5\]"):
        model.set_attn_mask_probs([1, 1.5])


# --- training ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.uint8])
def test_masks_may_have_any_type(dtype):
    model = tiny_model().train()
    masks, labels = targets((3, 0), dtype=dtype)
    torch.manual_seed(0)
    out = model(torch.ones(2, 3, 64, 64), mask_labels=masks, class_labels=labels)
    torch.testing.assert_close(out.loss, sum(out.loss_dict.values()))
    assert set(out.loss_dict) == {
        f"loss_{part}{block}" for part in ("mask", "dice", "cross_entropy") for block in ("", "_0", "_1")
    }  # fmt: skip
    out.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("mode", ["bf16", "autocast", "stacked", "empty"])
def test_loss_is_finite_in_every_precision(mode):
    model = tiny_model().train()
    masks, labels = targets((0, 0) if mode == "empty" else (3, 3))
    pixels = torch.randn(2, 3, 64, 64)
    if mode == "stacked":
        masks, labels = torch.stack(masks), torch.stack(labels)
    if mode == "bf16":
        model, pixels = model.bfloat16(), pixels.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"):
        out = model(pixels, mask_labels=masks, class_labels=labels)
    out.loss.backward()
    assert out.loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(("counts", "labels", "word"), [
    ((2, 1), ([0, 1], [5]), "label 5"),
    ((2,), ([0, 1], [2]), "2 images"),
    ((2, 1), ([0, 1], [1, 2]), "image 1"),
    ((2, 1), None, "None"),
])  # fmt: skip
def test_wrong_targets_are_refused(counts, labels, word):
    labels = labels and [torch.tensor(image) for image in labels]
    with pytest.raises(ValueError, match=word):
        tiny_model()(torch.zeros(2, 3, 64, 64), mask_labels=targets(counts)[0], class_labels=labels)


@pytest.mark.parametrize("kind", ["dinov2", "eva02"])
def test_gradient_checkpointing_has_the_same_gradients(kind):
    masks, labels = targets((2, 1))
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model(kind).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        torch.manual_seed(3)
        pixels = torch.randn(2, 3, 64, 64)
        model(pixels, mask_labels=masks, class_labels=labels).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, checkpointed in zip(*gradients):
        torch.testing.assert_close(plain, checkpointed, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["dinov2", "dinov2_swiglu", "eva02"])
def test_recomputing_changes_memory_only(kind, monkeypatch):
    masks, labels = targets((2, 1))
    pixels = torch.randn(2, 3, 64, 64)
    gradients, held = [], []
    for recompute in (True, False):
        if not recompute:
            for module in (heads, layers):
                monkeypatch.setattr(module, "recomputed", lambda function, *inputs, modules: function(*inputs))
        model = tiny_model(kind).train()
        torch.manual_seed(3)
        loss = partial(model, pixels, mask_labels=masks, class_labels=labels)
        held.append(extra_cpu_bytes(loss))
        torch.manual_seed(3)
        loss().loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(map(torch.equal, *gradients))
    assert held[0] < 0.75 * held[1]


def test_auxiliary_logits_can_be_left_out():
    model = tiny_model().train()
    masks, labels = targets((2, 1))
    losses = []
    for wanted in (True, False):
        torch.manual_seed(3)
        out = model(torch.ones(2, 3, 64, 64), mask_labels=masks, class_labels=labels, output_auxiliary_logits=wanted)
        assert (out.auxiliary_logits is not None) == wanted
        losses.append(out.loss_dict)
    assert losses[0] == losses[1]


# --- features of transformers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("masked", [1, 0])
@torch.no_grad()
def test_hidden_states_and_attentions(implementation, masked):
    model = tiny_model(attn_implementation=implementation)
    model.set_attn_implementation(implementation)
    model.set_attn_mask_probs([masked] * 2)
    pixels = torch.randn(1, 3, 64, 64)
    out = model(pixels, output_hidden_states=True, output_attentions=True)
    assert [tuple(state.shape) for state in out.hidden_states] == [(1, 21, 48)] * 3 + [(1, 28, 48)] * 2
    assert [tuple(weights.shape) for weights in out.attentions] == [(1, 4, 21, 21)] * 2 + [(1, 4, 28, 28)] * 2
    for weights in out.attentions:
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights.sum(-1)))
    expected = model(pixels).masks_queries_logits
    torch.testing.assert_close(out.masks_queries_logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["dinov3", "eva02"])
@torch.no_grad()
def test_kernels_get_one_type_under_autocast(kind):
    """sdpa casts its inputs, flex attention does not."""
    types = set()

    def kernel(module, query, key, value, mask, **kwargs):
        types.update((query.dtype, key.dtype, value.dtype))
        return value.transpose(1, 2), None

    AttentionInterface.register("noted", kernel)
    model = tiny_model(kind)
    model.set_attn_mask_probs([0, 0])
    model.set_attn_implementation("noted")
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.randn(1, 3, 64, 64))
    assert types == {torch.bfloat16}


def count_graphs() -> tuple[list, Callable]:
    """A list, and a backend of torch.compile that adds each graph to it."""
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    return graphs, count


def test_annealing_recompiles_only_when_a_block_ends():
    model = tiny_model(num_hidden_layers=2).train()
    graphs, count = count_graphs()
    compiled, pixels = torch.compile(model, fullgraph=True, backend=count), torch.ones(1, 3, 64, 64)
    for step in range(0, 24, 2):
        model.set_attn_mask_probs([max(0, 1 - step / 10), max(0, 1 - step / 20)])
        logits = compiled(pixels).masks_queries_logits
    assert len(graphs) == 3
    torch.testing.assert_close(logits, model(pixels).masks_queries_logits, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_compiled_training_has_one_graph_for_each_masking_state():
    """The steps differ in their numbers of masks, also none, and in the mask probabilities."""
    model = tiny_model("dinov3").train()
    graphs, count = count_graphs()
    compiled = torch.compile(model, backend=count)
    for step, counts in enumerate([(3, 0), (1, 1), (0, 0), (5, 2), (2, 7), (4, 4), (0, 6), (1, 3)]):
        model.set_attn_mask_probs([max(0, 1 - step / 4), 1 - step / 20])
        masks, labels = targets(counts)
        out = compiled(torch.ones(2, 3, 64, 64), masks, labels, output_auxiliary_logits=False)
        out.loss.backward()
    assert model.query.weight.grad.isfinite().all()
    assert len(graphs) == 2  # both blocks masked; only the second


def test_checkpoint_loads_at_another_size(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    for arguments in ({"image_size": 128}, {"config": tiny_config(image_size=(128, 128), masked_inference=True)}):
        larger, info = EoMTForUniversalSegmentation.from_pretrained(tmp_path, output_loading_info=True, **arguments)
        assert not info["missing_keys"]
        assert not info["mismatched_keys"]
        assert larger.embeddings.position_embeddings.weight.shape == (64, 48)
        # equal to the positions that `model` computes in forward
        pixels = torch.randn(1, 3, 128, 128)
        with torch.no_grad():
            torch.testing.assert_close(
                larger(pixels).masks_queries_logits, model(pixels).masks_queries_logits, rtol=0, atol=1e-5
            )
    smaller = EoMTForUniversalSegmentation.from_pretrained(tmp_path, patch_size=8)
    assert smaller.embeddings.projection.kernel_size == (8, 8)


def test_missing_weights_are_initialized(tmp_path):
    tiny_model(hidden_size=96, num_queries=50).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    lacking = ("query.weight", "embeddings.position_embeddings.weight", "mask_head.fc1.weight")
    save_file({name: tensor for name, tensor in load_file(file).items() if name not in lacking}, file, {"format": "pt"})
    state = EoMTForUniversalSegmentation.from_pretrained(tmp_path).state_dict()
    deviations = [state[name].std().item() for name in lacking]
    assert deviations == pytest.approx([1, 0.02, (1 / 96 / 3) ** 0.5], rel=0.1)
    more = EoMTForUniversalSegmentation.from_pretrained(tmp_path, num_queries=60, ignore_mismatched_sizes=True)
    assert more.query.weight.std().item() == pytest.approx(1, rel=0.1)


def test_a_model_trained_without_masks_cannot_infer_with_them():
    model = tiny_model(masked_attention=False)
    with model.inference_masking(False):
        assert model.attn_mask_probs.tolist() == [0, 0]
    assert model.attn_mask_probs.tolist() == [1, 1]
    with pytest.raises(ValueError, match="masked_attention"), model.inference_masking(True):
        pass


@pytest.mark.parametrize("trained_with_masks", [True, False, None])
@torch.no_grad()
def test_a_loaded_model_infers_as_it_was_trained(trained_with_masks, tmp_path):
    """Its buffer does not matter. A checkpoint without `masked_inference` infers without masks."""
    model = tiny_model()
    pixels = torch.randn(1, 3, 64, 64)
    with model.inference_masking(False):
        free = model(pixels).masks_queries_logits
    with model.inference_masking(True):
        masked = model(pixels).masks_queries_logits
    assert not torch.equal(free, masked)
    assert model.attn_mask_probs.tolist() == [1, 1]
    model.config.masked_inference = bool(trained_with_masks)
    model.save_pretrained(tmp_path)
    if trained_with_masks is None:
        file = tmp_path / "config.json"
        fields = json.loads(file.read_text())
        del fields["masked_inference"]
        file.write_text(json.dumps(fields))
    loaded = EoMTForUniversalSegmentation.from_pretrained(tmp_path)
    assert loaded.infers_with_masks is bool(trained_with_masks)
    assert torch.equal(loaded(pixels).masks_queries_logits, masked if trained_with_masks else free)
    assert loaded.attn_mask_probs.tolist() == [1, 1]
    assert len(loaded.train()(pixels).auxiliary_logits) == 2
    loaded.eval().set_attn_mask_probs([1, 1])
    assert torch.equal(loaded(pixels).masks_queries_logits, masked)


# --- adapters, hooks and function transforms -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["dinov2", "dinov3", "eva02"])
def test_gradients_with_dropout_in_an_adapter_of_the_second_layer(kind):
    """Both passes have the same dropout: the gradient equals the finite difference of the loss."""
    peft = pytest.importorskip("peft")
    model = tiny_model(kind, num_hidden_layers=2, num_blocks=1, masked_inference=False).double()
    name = "fc2" if kind == "dinov2" else "down_proj"
    lora = peft.LoraConfig(target_modules=[name], lora_dropout=0.5, init_lora_weights=False)
    model = peft.inject_adapter_in_model(lora, model).train()
    model.set_attn_mask_probs([0])
    weight = next(p for n, p in model.named_parameters() if "lora_A" in n)
    pixels = torch.randn(1, 3, 64, 64, dtype=torch.float64)

    def loss():
        torch.manual_seed(0)
        return model(pixels).masks_queries_logits.square().mean()

    loss().backward()
    step, direction = 1e-6, torch.randn_like(weight)
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight.add_(sign * step * direction)
            values.append(loss())
            weight.sub_(sign * step * direction)
    expected = (values[0] - values[1]) / (2 * step)
    torch.testing.assert_close((weight.grad * direction).sum(), expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("kind", ["dinov2", "eva02"])
def test_layers_with_hooks_run_once(kind):
    model = tiny_model(kind).train()
    calls = []
    name = "fc2" if kind == "dinov2" else "down_proj"
    model.layers[0].mlp.get_submodule(name).register_forward_hook(lambda *_: calls.append(1))
    norm = model.upscale_block.block[0].layernorm2d
    norm.register_forward_pre_hook(lambda *_: calls.append(2))
    torch.nn.utils.parametrizations.spectral_norm(model.layers[1].mlp.get_submodule(name))
    out = model(torch.randn(1, 3, 64, 64))
    state = {name: value.clone() for name, value in model.named_buffers()}
    calls_of_forward = list(calls)
    out.masks_queries_logits.sum().backward()
    assert calls == calls_of_forward
    assert all(torch.equal(value, state[name]) for name, value in model.named_buffers())


def test_function_transforms_and_tracing_with_gradients():
    model = tiny_model().eval()
    pixels = torch.randn(2, 3, 64, 64)
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters, image):
        return torch.func.functional_call(model, parameters, (image[None],)).masks_queries_logits.square().mean()

    per_sample = torch.func.grad(loss)(parameters, pixels[0])
    model(pixels[:1]).masks_queries_logits.square().mean().backward()
    torch.testing.assert_close(per_sample["query.weight"], model.query.weight.grad, rtol=1e-4, atol=1e-7)
    model.set_attn_mask_probs([0, 0])
    traced = torch.jit.trace(model, pixels, strict=False, check_trace=False)
    torch.testing.assert_close(traced(pixels)["masks_queries_logits"], model(pixels).masks_queries_logits)


@pytest.mark.slow
@torch.no_grad()
def test_exported_programs_at_several_sizes():
    model = tiny_model(num_hidden_layers=2, num_blocks=1)
    dynamic = {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    model.set_attn_mask_probs([0])
    program = torch.export.export(model, (torch.randn(2, 3, 64, 64),), dynamic_shapes={"pixel_values": dynamic})
    for size in ((64, 64), (96, 80)):
        pixels = torch.randn(3, 3, *size)
        found, expected = program.module()(pixels), model(pixels)
        torch.testing.assert_close(found.masks_queries_logits, expected.masks_queries_logits, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_compiled_training_at_several_sizes():
    model = tiny_model(num_hidden_layers=2, num_blocks=1)
    plain = copy.deepcopy(model).train()
    compiled = torch.compile(model.train(), backend="aot_eager")
    for size in ((64, 64), (96, 80)):
        pixels, (masks, labels) = torch.randn(2, 3, *size), targets((2, 1), size=size)
        losses = []
        for network in (plain, compiled):
            torch.manual_seed(0)
            network.zero_grad()
            out = network(pixels, masks, labels)
            out.loss.backward()
            losses.append(out.loss)
        torch.testing.assert_close(*losses)
        found, expected = model.embeddings.cls_token.grad, plain.embeddings.cls_token.grad
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
