"""Tests for a GPU: `make test-gpu`. They are skipped without one.

`EOMT_TEST_DEVICE=cpu python -m pytest -m gpu` runs them on a CPU, to check the tests themselves, without what only CUDA
has: the count of synchronizations, and flash attention.
"""

import os

import pytest
import torch

DEVICE = torch.device(os.environ.get("EOMT_TEST_DEVICE", "cuda"))
NEEDS_DEVICE = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE.type == "cuda" and not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture
def device():
    return DEVICE


@pytest.fixture(autouse=True)
def exact_products(monkeypatch):
    """No TF32."""
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")  # for engines that are loaded later
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    torch._dynamo.reset()
    yield
    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.allow_tf32 = convolutions


@pytest.fixture
def same_random_numbers(monkeypatch):
    """Every device gets the CPU's random numbers."""
    on_host = torch.rand
    monkeypatch.setattr(torch, "rand", lambda *size, device=None, **options: on_host(*size, **options).to(device))
