"""The rows of `benchmarks.engines`: a model, an engine, a type of numbers."""

from dataclasses import dataclass

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MODELS = {  # of this implementation: fields of the configuration
    "ViT-B/16, 640², 200 queries": {},
    "100 queries": {"num_queries": 100},
    "480²": {"image_size": 480},
    "320²": {"image_size": 320},
    "patch 32": {"patch_size": 32, "num_upscale_blocks": 3},
}
FULL = next(iter(MODELS))


@dataclass(frozen=True)
class Row:
    model: str
    engine: str  # "built-in", "torch", "onnx", "openvino", or "mask2former"
    precision: str

    @property
    def title(self) -> str:
        engines = {"built-in": "built-in, PyTorch", "torch": "this, PyTorch", "onnx": "this, ONNX Runtime"}
        if self.engine == "mask2former":
            return f"Mask2Former, {self.model}, PyTorch"
        return engines.get(self.engine, "this, OpenVINO") + ("" if self.model == FULL else f", {self.model}")


ENGINE_ROWS = [
    Row(FULL, engine, precision)
    for engine, precisions in (
        ("built-in", ("fp32", "bf16")),
        ("torch", ("fp32", "bf16")),
        ("onnx", ("fp32",)),
        ("openvino", ("fp32", "bf16", "int8")),
    )
    for precision in precisions
]
MODEL_ROWS = [Row(model, "openvino", precision) for model in list(MODELS)[1:] for precision in ("fp32", "bf16")]
OTHER_ROWS = [Row(swin, "mask2former", "fp32") for swin in ("Swin-T", "Swin-L")]
