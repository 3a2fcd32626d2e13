"""Programs of transformers' exporters have the results of the model."""

import numpy as np
import pytest
import torch

from tests.models import tiny_model

try:
    from transformers.exporters.auto import AutoHfExporter
    from transformers.exporters.configs import DynamoConfig, OnnxConfig, OpenVINOConfig
except ImportError:  # a version without an exporter for OpenVINO
    pytest.skip("transformers has fewer exporters", allow_module_level=True)


def run_dynamo(program, pixels) -> list:
    return program.module()(pixel_values=pixels).to_tuple()


def run_onnx(program, pixels) -> list:
    import onnx_ir
    import onnxruntime

    model = onnx_ir.to_proto(getattr(program, "model", program)).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: pixels.numpy()})


def run_openvino(program, pixels) -> list:
    import openvino

    return list(openvino.compile_model(program, "CPU")([pixels.numpy()]).values())


EXPORTERS = {  # package: class of the exporter's configuration, and a function that runs the program
    "torch": (DynamoConfig, run_dynamo),
    "onnxscript": (OnnxConfig, run_onnx),
    "openvino": (OpenVINOConfig, run_openvino),
}


@pytest.mark.slow
@pytest.mark.parametrize("package", EXPORTERS)
@torch.no_grad()
def test_exported_programs_have_the_models_results(package):
    make_config, run = EXPORTERS[package]
    model, pixels = tiny_model(), torch.randn(1, 3, 64, 64)
    model.set_attn_mask_probs([0, 0])
    expected = [value.numpy() for value in model(pixels).to_tuple()]
    exported = AutoHfExporter.from_config(make_config()).export(model, {"pixel_values": pixels}, make_config())
    program = getattr(exported, "program", exported)  # older versions return the program itself
    found = [np.asarray(value) for value in run(program, pixels)]
    assert [value.shape for value in found] == [value.shape for value in expected]
    for ours, theirs in zip(found, expected):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
