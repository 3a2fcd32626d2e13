"""Synchronizations of the host with the device, counted on a fake CUDA device: none in forward, one in the loss."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from tests.modeling_eomt.ladder.test_ladder import ladder
from tests.modeling_eomt.test_pmt import tiny_pmt
from tests.models import BACKBONE_OF_KIND, tiny_model

CUDA = torch.device("cuda:0")


class Waits(TorchDispatchMode):
    """Records the operations that make the host wait: reading values, and blocking copies from or to the device."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func._overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero"):
            self.found.append(name)
        elif name in ("_to_copy", "copy_"):
            source = args[0] if name == "_to_copy" else args[1]
            non_blocking = (kwargs or {}).get("non_blocking", False) or args[2:] == (True,)
            is_queued = non_blocking and out.device.type == "cuda"
            if source.device.type != out.device.type and not is_queued:
                self.found.append(f"{source.device} to {out.device}")
        return out


@pytest.fixture
def fake_cuda(monkeypatch):
    """Tensors without values; the loss reads zeros."""

    def read(tensor):
        torch.empty_like(tensor, device="cpu").copy_(tensor)
        return SimpleNamespace(numpy=lambda: np.zeros(tensor.shape))

    monkeypatch.setattr(torch.Tensor, "cpu", read)
    monkeypatch.setattr(PreTrainedModel, "init_weights", lambda model: None)  # reads values
    with FakeTensorMode():
        yield


@pytest.mark.parametrize(("kind", "masked"), [*((kind, 0.5) for kind in BACKBONE_OF_KIND), ("dinov3", 0.0)])
def test_forward_and_annealing_never_wait(kind, masked, fake_cuda):
    for training in (False, True):
        with CUDA:
            model = tiny_model(kind).train(training)
        with Waits() as waits:
            model.set_attn_mask_probs([masked] * 2)
            model(torch.randn(2, 3, 64, 64, device=CUDA))
        assert waits.found == []


# Steps 0 and 1 of the ladder wait: transformers' pixel decoder copies the sizes of its maps.
@pytest.mark.parametrize("build", [partial(ladder, 2), partial(ladder, 3), tiny_pmt])
def test_the_other_models_never_wait(build, fake_cuda):
    with CUDA:
        model = build()
    with Waits() as waits:
        model(torch.randn(2, 3, 64, 64, device=CUDA))
    assert waits.found == []


@pytest.mark.parametrize("mask_device", [CUDA, "cpu"])
def test_the_loss_waits_once(mask_device, fake_cuda):
    with CUDA:
        model = tiny_model().train()
    masks = [torch.zeros(count, 64, 64, dtype=torch.bool, device=mask_device) for count in (3, 0)]
    labels = [torch.zeros(count, dtype=torch.long, device=CUDA) for count in (3, 0)]
    with Waits() as waits:
        model(torch.randn(2, 3, 64, 64, device=CUDA), masks, labels)
    assert waits.found == ["cuda:0 to cpu"]
