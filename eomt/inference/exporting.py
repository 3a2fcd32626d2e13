"""A model as a file for an engine: ONNX or OpenVINO; any batch, masked attention off.

B images · Q queries · C labels · H, W pixels
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..configuration import as_pair
from .engines import ENGINES, INPUT, MAX_SIDE, OUTPUTS, PRECISION_KEY

# What each format can be written in. Half precision where the engine's kernels have it: bf16 OpenVINO's, fp16 ONNX's.
PRECISIONS = {"openvino": ("fp32", "bf16", "int8"), "onnx": ("fp32", "fp16", "int8")}
PACKAGES = {"openvino": ("openvino",), "onnx": ("onnx", "onnxscript", "onnxruntime")}
INT8_PACKAGES = {"openvino": ("nncf",), "onnx": ()}
LARGEST_ONNX = 1_900_000_000  # bytes; a protobuf ends at 2 GiB, larger weights go beside it
TOLERANCE = 1e-4  # of the largest logit: fp32 sums in another order


class Exportable(nn.Module):
    """EoMT without what an exported program cannot return: tensors in, tensors out."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        output = self.model(pixel_values)
        return output.class_queries_logits, output.masks_queries_logits


def exportable(model: nn.Module) -> Exportable:
    """`model`, in evaluation mode and with its masking turned off, ready for export."""
    model.eval()
    model.set_attn_mask_probs([0.0] * model.config.num_blocks)
    return Exportable(model).eval()


def export(
    model: Exportable,
    kind: str,
    folder: Path,
    size: tuple[int, int],
    precision: str = "fp32",
    calibration: Sequence[np.ndarray] = (),
    dynamic_size: bool = False,
) -> Path:
    """Write `model` for an engine → the file.

    Args:
        kind: "openvino" or "onnx".
        size: (H, W) in pixels, fixed in the file unless `dynamic_size`.
        precision: "fp32", "bf16" (OpenVINO), "fp16" (ONNX), or "int8": matrix products of the encoder, calibrated.
        calibration: for int8, inputs (B, 3, H, W) of real images.

    Raises:
        ValueError: when the format has no such precision, int8 has no calibration, or the model's learned positions
            fix the size.
    """
    if precision not in PRECISIONS[kind]:
        raise ValueError(f"{kind} has no {precision}; choose from {', '.join(PRECISIONS[kind])}")
    if precision == "int8" and not calibration:
        raise ValueError("int8 needs images that are like those to come: --calibrate IMAGES")
    if precision == "int8" and not model.model.config.blocks_are_the_encoders:
        raise ValueError("int8 is for EoMT; export steps 0 to 3 of the ladder in floating point")
    if dynamic_size and model.model.config.has_position_embeddings:
        raise ValueError(
            f"--dynamic-size: a {model.model.config.model_type!r} model has learned positions, resampled at each size, "
            "which the engines cannot; export each size with --image-size (DINOv3's rotary positions take any)"
        )
    path = folder / ENGINES[kind].file
    with torch.no_grad():
        if kind == "onnx":
            _write_onnx(model, path, size, precision, calibration, dynamic_size)
            return path
        example = torch.zeros(2, model.model.config.num_channels, *size)
        program = torch.export.export(model, (example,), dynamic_shapes=_shapes(model, dynamic_size))
    _write_openvino(program, path, model.model.config, size, precision, calibration, dynamic_size)
    return path


def _shapes(model: Exportable, dynamic_size: bool) -> dict:
    free = {0: torch.export.Dim("batch", min=1)}
    if dynamic_size:
        patch = as_pair(model.model.config.patch_size)
        for axis, name, side in ((2, "rows", patch[0]), (3, "columns", patch[1])):
            free[axis] = side * torch.export.Dim(name, min=2, max=MAX_SIDE // side)
    return {INPUT: free}


def _write_openvino(program, path: Path, config, size, precision: str, calibration, dynamic_size: bool) -> None:
    import openvino

    model = openvino.convert_model(program)
    for output, name in zip(model.outputs, OUTPUTS):
        output.get_tensor().set_names({name})
    if not dynamic_size:
        model.reshape([-1, config.num_channels, *size])
    if precision == "int8":
        model = _quantize_openvino(model, config, calibration)
    model.set_rt_info(precision, [PRECISION_KEY])
    openvino.save_model(model, path, compress_to_fp16=False)


def _quantize_openvino(model, config, calibration):
    """The encoder's matrix products in int8 by NNCF's transformer preset; the heads stay as they are."""
    import nncf

    nncf.set_log_level(40)  # logging.ERROR: else it lists every ignored operation
    norms = [node.get_friendly_name() for node in model.get_ordered_ops() if node.get_type_name() == "MVN"]
    heads = nncf.Subgraph(
        inputs=[norms[-1 - config.num_upscale_blocks]],  # the final norm; each upscaling block has one after it
        outputs=[result.get_friendly_name() for result in model.get_results()],
    )
    return nncf.quantize(
        model,
        nncf.Dataset(list(calibration)),
        model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(calibration),
        ignored_scope=nncf.IgnoredScope(subgraphs=[heads]),
    )


def _write_onnx(model: Exportable, path: Path, size, precision: str, calibration, dynamic_size: bool) -> None:
    import onnx

    program = torch.onnx.export(
        model,
        (torch.zeros(2, model.model.config.num_channels, *size),),
        dynamo=True,
        dynamic_shapes=_shapes(model, dynamic_size),
        input_names=[INPUT],
        output_names=list(OUTPUTS),
        verbose=False,
    )
    weights = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
    large = weights > LARGEST_ONNX
    proto = program.model_proto
    if precision == "fp16":
        from onnxruntime.transformers.float16 import convert_float_to_float16

        proto = convert_float_to_float16(proto, keep_io_types=True, disable_shape_infer=large)
    onnx.helper.set_model_props(proto, {PRECISION_KEY: precision})
    if precision == "int8":
        plain = path.with_suffix(".float.onnx")
        onnx.save(proto, plain, save_as_external_data=large)
        _quantize_onnx(plain, path, model.model.config, calibration, large)
        for part in path.parent.glob(f"{plain.name}*"):
            part.unlink()
    else:
        onnx.save(proto, path, save_as_external_data=large, location=f"{path.name}.data")


def _quantize_onnx(source: Path, path: Path, config, calibration, large: bool) -> None:
    """The encoder's matrix products in int8, one scale a column, by ONNX Runtime's static quantization."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Images(CalibrationDataReader):
        def __init__(self):
            self._images = iter(calibration)

        def get_next(self):
            pixels = next(self._images, None)
            return None if pixels is None else {INPUT: pixels}

    nodes = onnx.load(source, load_external_data=False).graph.node
    norms = [index for index, node in enumerate(nodes) if node.op_type == "LayerNormalization"]
    heads = [node.name for node in list(nodes)[norms[-1 - config.num_upscale_blocks] :]]
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it advises to optimize the graph first, as torch's exporter has
    try:
        quantize_static(
            source,
            path,
            Images(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul", "Gemm"],
            nodes_to_exclude=heads,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            use_external_data_format=large,
        )
    finally:
        logging.disable(disabled)


@dataclass(frozen=True)
class Difference:
    """How far an exported file is from the model, over several batch sizes."""

    logits: float
    """Largest difference of a logit."""
    relative: float
    """The same, divided by the largest logit of its kind."""
    pixels: float
    """Share of mask pixels on the other side of 0."""
    classes: float
    """Share of queries whose class differs."""


def compare(exported, model: Exportable, pixels: Tensor) -> Difference:
    """Run file and model on (B, 3, H, W), and on one image less and one more: the batch must be free.

    Raises:
        ValueError: when an output has another shape or holds no numbers.
    """
    batches = [pixels, torch.cat([pixels, pixels[:1].flip(-1)]), pixels[:1]]
    worst = Difference(0.0, 0.0, 0.0, 0.0)
    for batch in batches:
        with torch.no_grad():
            expected = model(batch)
        output = exported(batch)
        found = (output.class_queries_logits, output.masks_queries_logits)
        for ours, theirs in zip(expected, found):
            if ours.shape != theirs.shape or not theirs.isfinite().all():
                raise ValueError(f"the file gives {tuple(theirs.shape)} for {tuple(ours.shape)}, or no numbers")
        gaps = [(ours - theirs).abs().max().item() for ours, theirs in zip(expected, found)]
        relative = [gap / ours.abs().max().clamp(min=1).item() for gap, ours in zip(gaps, expected)]
        flipped = ((expected[1] > 0) != (found[1] > 0)).float().mean().item()
        changed = (expected[0].argmax(-1) != found[0].argmax(-1)).float().mean().item()
        worst = Difference(
            max(worst.logits, *gaps),
            max(worst.relative, *relative),
            max(worst.pixels, flipped),
            max(worst.classes, changed),
        )
    return worst


def synthetic_photo(height: int = 480, width: int = 640) -> Image.Image:
    """A picture with areas, edges and texture, always the same; for when there is no photo at hand."""
    random = np.random.default_rng(0)
    blobs = Image.fromarray(random.integers(0, 256, (6, 8, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    picture = np.asarray(blobs).astype(np.int16)
    for _ in range(6):
        top, left = random.integers(0, height // 2), random.integers(0, width // 2)
        picture[top : top + height // 3, left : left + width // 4] = random.integers(0, 256, 3)
    picture += random.integers(-12, 13, picture.shape)
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))
