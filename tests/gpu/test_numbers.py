"""The models on a GPU: numbers equal to the CPU's, every kernel, half precision, compilation, synchronization."""

import copy
import warnings
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from transformers.utils import is_flash_attn_2_available

from eomt import EoMTImageProcessor
from eomt.speed.measure import peak_bytes
from tests.gpu.conftest import NEEDS_DEVICE
from tests.modeling_eomt.ladder.test_ladder import ladder
from tests.modeling_eomt.test_pmt import tiny_pmt
from tests.models import BACKBONE_OF_KIND, make_confident, targets, tiny_model

pytestmark = NEEDS_DEVICE

KINDS = list(BACKBONE_OF_KIND)
MODELS = {
    **{kind: partial(tiny_model, kind) for kind in KINDS},
    **{f"step {step}": partial(ladder, step) for step in range(4)},
    "pmt": tiny_pmt,
}
WIDE_HEADS = {"hidden_size": 64, "num_attention_heads": 2}  # flex attention on CUDA needs heads of 16 or wider
KERNELS = ["eager", "flex_attention", *(["flash_attention_2"] if is_flash_attn_2_available() else [])]
PIXELS = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(5))
HALF = {torch.bfloat16: 0.05, torch.float16: 0.01}  # type: error as a share of the logits' norm


def assert_close(found, expected, share: float) -> None:
    """Relative to the largest value, because logits near 0 are rounded more."""
    found, expected = found.detach().float().cpu(), expected.detach().float().cpu()
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= share * expected.abs().max().clamp(min=1e-6)


def relative_error(found, expected) -> float:
    difference = found.masks_queries_logits.float() - expected.masks_queries_logits
    return (difference.norm() / expected.masks_queries_logits.norm()).item()


def mask(model, masked: bool):
    model.set_attn_mask_probs([float(masked)] * model.config.num_blocks)
    return model


def labels_on(device) -> dict:
    masks, labels = targets()
    return {"mask_labels": [m.to(device) for m in masks], "class_labels": [c.to(device) for c in labels]}


# --- the same numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_logits_loss_and_gradients_equal_the_cpus(name, masked, device, same_random_numbers):
    on_cpu = mask(MODELS[name](), masked)
    on_device = copy.deepcopy(on_cpu).to(device)
    torch.manual_seed(0)
    expected = on_cpu(PIXELS, **labels_on("cpu"))
    torch.manual_seed(0)
    found = on_device(PIXELS.to(device), **labels_on(device))
    assert found.masks_queries_logits.device.type == device.type
    assert_close(found.masks_queries_logits, expected.masks_queries_logits, 1e-4)
    assert_close(found.class_queries_logits, expected.class_queries_logits, 1e-4)
    assert_close(found.loss, expected.loss, 1e-3)  # rounding can change which points are the least certain
    expected.loss.backward()
    found.loss.backward()
    for parameter, reference in zip(on_device.parameters(), on_cpu.parameters()):
        assert (parameter.grad is None) == (reference.grad is None)
        if reference.grad is not None and reference.grad.abs().max() > 1e-3:
            assert_close(parameter.grad, reference.grad, 0.02)


@torch.no_grad()
def test_logits_of_merged_tokens_equal_the_cpus(device):
    model = mask(tiny_model(), False)
    model.set_token_merging((1, 2), 0.1)
    found = copy.deepcopy(model).to(device)(PIXELS.to(device))
    assert_close(found.masks_queries_logits, model(PIXELS).masks_queries_logits, 1e-4)


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
@torch.no_grad()
def test_segments_equal_the_cpus(task, device):
    model = mask(tiny_model(), False)
    make_confident(model)
    process = getattr(EoMTImageProcessor(task=task, size=64), f"post_process_{task}_segmentation")
    output = model(PIXELS)
    expected = process(output, target_sizes=[(80, 80)] * 2)
    moved = copy.copy(output)
    moved.masks_queries_logits = output.masks_queries_logits.to(device)
    moved.class_queries_logits = output.class_queries_logits.to(device)
    for ours, theirs in zip(process(moved, target_sizes=[(80, 80)] * 2), expected):
        if task != "semantic":
            assert [s["label_id"] for s in ours["segments_info"]] == [s["label_id"] for s in theirs["segments_info"]]
            ours, theirs = ours["segmentation"], theirs["segmentation"]
        assert (ours.cpu() != theirs).float().mean() < 1e-3


# --- half precision and kernels --------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_half_precision_is_close(kind, dtype, masked, device):
    """With masks the error is larger: cells near the edge of a mask change sides."""
    model = mask(tiny_model(kind).to(device), masked)
    pixels, limit = PIXELS.to(device), 10 * HALF[dtype] if masked else HALF[dtype]
    expected = model(pixels)
    with torch.autocast(device.type, dtype):
        assert relative_error(model(pixels), expected) < limit
    assert relative_error(model.to(dtype)(pixels.to(dtype)), expected) < limit


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kind", ["dinov2", "dinov3"])
@torch.no_grad()
def test_every_kernel_has_the_same_segments(kind, kernel, masked, device):
    model = mask(tiny_model(kind, **WIDE_HEADS).to(device), masked)
    make_confident(model)
    dtype = torch.float16 if kernel == "flash_attention_2" else torch.float32
    model, pixels = model.to(dtype), PIXELS.to(device, dtype)
    process = EoMTImageProcessor(task="semantic", size=64).post_process_semantic_segmentation
    maps = []
    for implementation in ("sdpa", kernel):
        model.set_attn_implementation(implementation)
        maps.append(torch.stack(process(model(pixels), target_sizes=[(64, 64)] * 2)))
    assert len(maps[0].unique()) > 1
    assert (maps[0] != maps[1]).float().mean() < (0.05 if dtype is torch.float16 else 1e-3)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kind", ["dinov2", "dinov3"])
def test_every_kernel_trains(kind, kernel, device):
    if kernel == "flex_attention" and device.type == "cpu":
        pytest.skip("flex attention has no gradients on the CPU")
    model = mask(tiny_model(kind, **WIDE_HEADS).to(device), True)
    gradients = []
    for implementation in ("sdpa", kernel):
        model.set_attn_implementation(implementation)
        model.zero_grad()
        torch.manual_seed(0)
        with torch.autocast(device.type, torch.bfloat16):
            output = model(PIXELS.to(device), **labels_on(device))
        output.masks_queries_logits.float().square().mean().backward()
        gradients.append(model.embeddings.projection.weight.grad.clone())
    assert gradients[1].isfinite().all()
    assert torch.nn.functional.cosine_similarity(*(g.flatten() for g in gradients), dim=0) > 0.9


# --- compiled --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("kind", ["dinov2", "dinov3"])
@torch.no_grad()
def test_the_model_compiles_to_one_graph(kind, masked, device):
    model, pixels = mask(tiny_model(kind).to(device), masked), PIXELS.to(device)
    compiled = torch.compile(model, fullgraph=True, dynamic=False)
    assert_close(compiled(pixels).masks_queries_logits, model(pixels).masks_queries_logits, 1e-4)


@pytest.mark.parametrize("kind", ["dinov2", "dinov3"])
@torch.no_grad()
def test_the_model_compiles_once_for_all_sizes(kind, device):
    """The tolerance is for positions, which are resampled by another formula when compiled."""
    model = mask(tiny_model(kind).to(device), False)
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    torch._dynamo.utils.counters.clear()
    for size in [(80, 96), (96, 128), (128, 80)]:
        pixels = torch.randn(2, 3, *size, device=device)
        assert_close(compiled(pixels).masks_queries_logits, model(pixels).masks_queries_logits, 1e-3)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_a_compiled_training_step_has_the_same_gradients(device):
    model = mask(tiny_model().to(device), False)
    losses, gradients = [], []
    for network in (model, torch.compile(model)):
        model.zero_grad()
        torch.manual_seed(0)
        output = network(PIXELS.to(device), **labels_on(device), output_auxiliary_logits=False)
        output.loss.backward()
        losses.append(output.loss)
        gradients.append(model.embeddings.projection.weight.grad.clone())
    assert_close(losses[1], losses[0], 1e-3)
    assert_close(gradients[1], gradients[0], 0.02)


# --- synchronization, training and memory ----------------------------------------------------------------------------


@contextmanager
def counted_waits(device):
    """List the operations for which the host waits for the device; none on a CPU."""
    found = []
    if device.type != "cuda":
        yield found
        return
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield found
    finally:
        torch.cuda.set_sync_debug_mode("default")
    found += [warning for warning in caught if "synchroniz" in str(warning.message)]


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_the_host_waits_once_and_in_the_loss(kind, masked, device):
    model, pixels, labels = mask(tiny_model(kind).to(device).train(), masked), PIXELS.to(device), labels_on(device)
    model(pixels, **labels).loss.backward()  # the first call loads kernels
    with counted_waits(device) as in_forward:
        mask(model, masked)
        model(pixels)
    assert in_forward == []
    with counted_waits(device) as in_loss:
        loss = model(pixels, **labels).loss
    assert len(in_loss) <= 1
    with counted_waits(device) as in_backward:
        loss.backward()
    assert in_backward == []


def test_training_with_the_fp16_scaler_converges(device):
    model = mask(tiny_model().to(device).train(), True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler(device.type)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.float16):
            loss = model(PIXELS.to(device), **labels_on(device), output_auxiliary_logits=False).loss
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert scaler.get_scale() > 1
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert losses[-1] < losses[0]


@torch.no_grad()
def test_repeated_inference_needs_no_more_memory(device):
    model = mask(tiny_model().to(device), True)
    pixels = PIXELS.to(device)
    first = model(pixels)

    def run(times: int) -> None:
        for _ in range(times):
            output = model(pixels)
            assert torch.equal(output.masks_queries_logits, first.masks_queries_logits)

    once, often = (peak_bytes(partial(run, times), model, device) for times in (1, 5))
    assert often <= 1.05 * once
