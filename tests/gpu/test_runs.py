"""Process groups, device maps, engines and the commands on a GPU."""

import copy
import shutil

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from eomt import EoMTForUniversalSegmentation
from eomt.cli import main
from eomt.engines import INPUT, OUTPUTS
from tests.gpu.conftest import DEVICE, NEEDS_DEVICE
from tests.gpu.test_numbers import PIXELS, assert_close, labels_on, mask
from tests.models import load_unmasked, tiny_model

pytestmark = NEEDS_DEVICE

PROVIDERS = {"cuda": ["CUDAExecutionProvider", "TensorrtExecutionProvider"], "cpu": ["CPUExecutionProvider"]}


@pytest.fixture
def group(device, tmp_path):
    """A process group of this process alone."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_one_process_of_a_group_trains_like_a_process_alone(kind, device, group):
    plain = mask(tiny_model().to(device).train(), True)
    model = network = copy.deepcopy(plain)
    if kind == "ddp":
        network = DistributedDataParallel(model, device_ids=[0] if device.type == "cuda" else None)
    else:
        mesh = init_device_mesh(device.type, (1,))
        for layer in model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    losses = []
    for trained, called in ((plain, plain), (model, network)):
        optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)  # Adam would turn rounding errors into full steps
        torch.manual_seed(0)
        loss = called(PIXELS.to(device), **labels_on(device)).loss
        loss.backward()
        optimizer.step()
        losses.append(loss)
    assert_close(losses[1], losses[0], 1e-5)
    for parameter, expected in zip(model.parameters(), plain.parameters()):
        parameter = parameter.full_tensor() if kind == "fsdp" else parameter
        assert_close(parameter, expected, 1e-3)


@pytest.mark.parametrize("place", ["auto", "split"])
@torch.no_grad()
def test_device_maps(place, device, tmp_path):
    """In "split", one block and the upscaler are in the host's memory and copied to the device."""
    model = mask(tiny_model(), False)
    model.save_pretrained(tmp_path)
    device_map, own = "auto", 0 if device.type == "cuda" else "cpu"
    if place == "split":
        device_map = {name: own for name, _ in model.named_children()} | {"attn_mask_probs": own}
        del device_map["layers"]
        device_map |= {f"layers.{index}": own for index in range(4)} | {"layers.1": "cpu", "upscale_block": "cpu"}
    loaded = EoMTForUniversalSegmentation.from_pretrained(tmp_path, device_map=device_map)
    found = loaded(PIXELS.to(device))
    assert_close(found.masks_queries_logits, model(PIXELS).masks_queries_logits, 1e-4)


@pytest.mark.parametrize("provider", PROVIDERS[DEVICE.type])
@torch.no_grad()
def test_every_provider_of_onnx_runtime_has_the_logits(provider, exported):
    onnxruntime = pytest.importorskip("onnxruntime")
    if provider not in onnxruntime.get_available_providers():
        pytest.skip(f"onnxruntime without {provider}")
    session = onnxruntime.InferenceSession(exported / "out" / "model.onnx", providers=[provider])
    assert session.get_providers()[0] == provider
    expected = load_unmasked(exported / "model")(PIXELS)
    for name, found in zip(OUTPUTS, session.run(list(OUTPUTS), {INPUT: PIXELS.numpy()})):
        assert_close(torch.from_numpy(found), expected[name], 1e-3)


def test_the_commands_run(demo_folder, device, tmp_path, capsys):
    """The demo trains a model on the device. Other commands evaluate, use and measure it there."""
    model, data = demo_folder / "model", demo_folder / "data"
    place = ["--device", device.type]
    assert (demo_folder / "report.json").is_file()
    assert main(["evaluate", "--model", str(model), "--data", str(data), *place]) == 0
    picture = str(next(data.rglob("*.png")))
    for extra in ([], ["--dtype", "bfloat16"], ["--compile"]):
        output = tmp_path / "-".join(["predicted", *extra])
        assert main(["predict", picture, "--model", str(model), "--output", str(output), *place, *extra]) == 0
    quick = ["--warm-up", "1", "--repeats", "2", "--batch-size", "2", "--autocast", "--dtype", "bfloat16"]
    assert main(["benchmark", "--model", str(model), *quick, *place]) == 0


@pytest.mark.parametrize("precision", ["bf16", "fp16"] if DEVICE.type == "cuda" else ["bf16"])
def test_a_training_run_resumes(precision, demo_folder, tmp_path):
    """Four steps, an evaluation and checkpoints, then the last two steps again from a checkpoint."""
    model = "--backbone-weights scratch --hidden-size 32 --num-hidden-layers 3 --num-attention-heads 2 --num-blocks 2"
    options = f"{model} --num-queries 8 --patch-size 8 --image-size 64 --train-num-points 64 --total-batch-size 4"
    options += " --dataloader-num-workers 2 --max-steps 4 --save-strategy steps --save-steps 2 --save-total-limit 2"
    command = f"train --data {demo_folder / 'data'} --output-dir {tmp_path} --precision {precision} {options}"
    assert main(command.split()) == 0
    shutil.rmtree(tmp_path / "checkpoint-4")
    assert main(f"{command} --resume".split()) == 0
    assert (tmp_path / "results.json").is_file()
