"""`eomt export`: write a model for an engine and check the file against the model. Only checked files are kept.

B images · Q queries · C labels · H, W pixels
"""

import importlib.util
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoImageProcessor

from .configuration import TASK_ROWS, as_pair
from .engines import ENCODER, ENGINES, INPUT, LEVELS, MAX_SIDE, OUTPUTS, PRECISION_KEY, ExportedEoMT
from .evaluate import evaluation_data
from .image_processing.geometry import input_size_of
from .loading import load_model
from .modeling_eomt import PMTForUniversalSegmentation
from .options import ExportOptions
from .predict import find_images
from .training.data import EvaluationTransform
from .training.evaluation import evaluate_model
from .training.files import atomic, require_free, require_writable

# Half precision follows the kernels of the engines: bf16 in OpenVINO, fp16 in ONNX Runtime.
PRECISIONS = {"openvino": ("fp32", "bf16", "int8"), "onnx": ("fp32", "fp16", "int8")}
PACKAGES = {"openvino": ("openvino",), "onnx": ("onnx", "onnxscript", "onnxruntime")}
INT8_PACKAGES = {"openvino": ("nncf",), "onnx": ()}
MAX_ONNX_BYTES = 1_900_000_000  # bytes; a protobuf holds at most 2 GiB, larger weights go to a second file
CALIBRATION_IMAGES = 100  # at most
TOLERANCE = 1e-4  # share of the largest logit: engines sum fp32 in another order


def export(source: str, output: Path, options: ExportOptions) -> int:
    """Write the folder `output`. Returns the exit code.

    Raises:
        ValueError: for options that cannot be used, or if a file differs from the model or loses too much of the
            metric. Nothing is written then.
    """
    require_free(output, options.force, source)
    require_writable(output.parent)
    require_options(options)
    size, image_size = {}, {}  # the processor's and the model's name for it
    if options.image_size:
        size, image_size = {"size": options.image_size}, {"image_size": options.image_size}
    processor = AutoImageProcessor.from_pretrained(source, **size)
    model = load_model(source, dtype=torch.float32, **image_size)
    if isinstance(model, ExportedEoMT):
        raise ValueError(f"{source} is exported already; give an EoMT of save_pretrained")
    if model.config.masked_inference:
        print("note: this model needs masked attention; the files have none and lose accuracy")
    if options.split_encoder and not isinstance(model, PMTForUniversalSegmentation):
        raise ValueError(f"--split-encoder is for PMT; {source} is a {model.config.model_type!r} model")
    score = scorer(model, processor, options) if options.data else None
    image = np.asarray(synthetic_image())[..., np.arange(processor.num_channels) % 3]
    pixels = processor(image, return_tensors="pt")["pixel_values"]
    calibration = calibration_inputs(options, processor)
    input_size = input_size_of(processor.size, processor.do_split_image)
    wrapped = exportable(model)
    before = score(model) if score else None
    with atomic(output, folder=True, force=options.force) as folder:
        model.config.masked_inference = False
        if options.split_encoder:
            model.config.encoder_digest = model.encoder.digest()
        model.config.save_pretrained(folder)
        processor.save_pretrained(folder)
        for kind in dict.fromkeys(options.format):
            if options.split_encoder:
                file = write_split(model, kind, folder, input_size, options.precision)
            else:
                file = write_file(
                    wrapped, kind, folder, input_size, options.precision, calibration, options.dynamic_size
                )
            exported = ExportedEoMT.from_pretrained(folder, engine=kind)
            gap = compare(exported, wrapped, pixels)
            if options.precision == "fp32" and gap.relative > TOLERANCE:
                raise ValueError(
                    f"{file.name} differs from the model by {gap.logits:.2g} in a logit ({gap.relative:.1g} of the "
                    f"largest; {TOLERANCE:g} is allowed); nothing was written"
                )
            print(summary(file, "any size" if options.dynamic_size else f"{input_size[0]} × {input_size[1]} pixels"))
            print(
                f"  on a synthetic image logits differ by at most {gap.logits:.1g}; {100 * gap.pixels:.4f} % of mask "
                f"logits have the other sign, {100 * gap.classes:.1f} % of queries another class"
            )
            if options.precision == "bf16" != exported.engine.dtype:
                print(f"note: this CPU has no bf16, so {file.name} was checked in {exported.engine.dtype}")
            if score:
                require_score(file, before, score(exported), options, TASK_ROWS[processor.task].metric)
    print(f"done: {output}")
    return 0


def require_options(options: ExportOptions) -> None:
    """Raise `ValueError` for a missing package, or for options that contradict each other."""
    int8 = options.precision == "int8"
    for kind in options.format:
        if options.precision not in PRECISIONS[kind]:
            raise ValueError(
                f"--format {kind} has no --precision {options.precision}; choose from {', '.join(PRECISIONS[kind])}"
            )
        packages = PACKAGES[kind] + (INT8_PACKAGES[kind] if int8 else ())
        missing = [name for name in packages if importlib.util.find_spec(name) is None]
        if missing:
            raise ValueError(f"--format {kind} needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    if options.split_encoder and (int8 or options.dynamic_size):
        raise ValueError("--split-encoder needs a fixed size and floating point; leave out int8 and --dynamic-size")
    if int8 != bool(options.calibrate):
        raise ValueError("--precision int8 needs --calibrate IMAGES, and only int8 does")
    if options.ignore_ids and not options.data:
        raise ValueError("--ignore-ids needs --data")


def scorer(model, processor, options: ExportOptions) -> Callable[[object], float]:
    """A function that scores a model, or its file, on --data (percent of the task's metric)."""
    task = processor.task
    rows, space = evaluation_data(options.data, task, model, split=options.split, ignore_ids=list(options.ignore_ids))
    rows = rows.with_transform(EvaluationTransform(space, task=task, num_channels=processor.num_channels))

    def score(model) -> float:
        result = evaluate_model(model, processor, rows, task=task, label_space=space)
        return 100 * result[TASK_ROWS[task].metric_key]

    return score


def require_score(file: Path, before: float, after: float, options: ExportOptions, metric: str) -> None:
    """Print the scores. Raises `ValueError` if the file loses more than --max-drop."""
    print(f"{file.name}: {metric} {after:.2f}, model {before:.2f}")
    if before - after > options.max_drop:
        raise ValueError(
            f"{file.name} loses {before - after:.2f} points of {metric} (--max-drop {options.max_drop:g}); calibrate "
            "with more images like those of the data, or export fp32; nothing was written"
        )


def calibration_inputs(options: ExportOptions, processor) -> list[np.ndarray]:
    """Calibration inputs (1, 3, H, W), one for each window of each image."""
    if not options.calibrate:
        return []
    files = list(find_images(options.calibrate).values())
    step = max(1, len(files) // CALIBRATION_IMAGES)
    inputs = []
    for file in files[::step][:CALIBRATION_IMAGES]:
        inputs += processor(str(file), return_tensors="pt")["pixel_values"].split(1)
    return [pixels.numpy() for pixels in inputs]


def synthetic_image(height: int = 480, width: int = 640) -> Image.Image:
    """A fixed image with areas, edges and texture."""
    random = np.random.default_rng(0)
    blobs = Image.fromarray(random.integers(0, 256, (6, 8, 3), np.uint8))
    pixels = np.asarray(blobs.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    for _ in range(6):
        top, left = random.integers(0, height // 2), random.integers(0, width // 2)
        pixels[top : top + height // 3, left : left + width // 4] = random.integers(0, 256, 3)
    pixels += random.integers(-12, 13, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def summary(file: Path, sides: str) -> str:
    """Name, megabytes with all weights, and input size of a file."""
    weights = (file.with_suffix(".bin"), file.with_name(f"{file.name}.data"))  # OpenVINO's, a large ONNX file's
    megabytes = sum(part.stat().st_size for part in (file, *weights) if part.exists()) / 1e6
    return f"{file.name}: {megabytes:.1f} MB, {sides}"


@dataclass(frozen=True)
class Difference:
    """Largest differences between an exported file and the model over several batch sizes."""

    logits: float  # difference of a logit
    relative: float  # the same, divided by the largest logit of its output
    pixels: float  # share of mask logits with the other sign
    classes: float  # share of queries with another class


def compare(exported, model: "Exportable", pixels: Tensor) -> Difference:
    """Compare file and model on (B, 3, H, W), and on one and B + 1 images: the batch size must be dynamic.

    Raises:
        ValueError: if an output has another shape or is not finite.
    """
    worst = [0.0, 0.0, 0.0, 0.0]
    for batch in (pixels, torch.cat([pixels, pixels[:1].flip(-1)]), pixels[:1]):
        with torch.no_grad():
            expected = model(batch)
        output = exported(batch)
        found = (output.class_queries_logits, output.masks_queries_logits)
        for ours, theirs in zip(expected, found):
            if ours.shape != theirs.shape or not theirs.isfinite().all():
                raise ValueError(f"an output is {tuple(theirs.shape)} instead of {tuple(ours.shape)}, or not finite")
        gaps = [(ours - theirs).abs().max().item() for ours, theirs in zip(expected, found)]
        relative = [gap / ours.abs().max().clamp(min=1).item() for gap, ours in zip(gaps, expected)]
        flipped = ((expected[1] > 0) != (found[1] > 0)).float().mean().item()
        changed = (expected[0].argmax(-1) != found[0].argmax(-1)).float().mean().item()
        worst = [max(pair) for pair in zip(worst, (max(gaps), max(relative), flipped, changed))]
    return Difference(*worst)


# --- writing ---------------------------------------------------------------------------------------------------------


class Exportable(nn.Module):
    """A model with tensors as inputs and outputs, which the exporters need."""

    input: str = INPUT
    outputs: tuple[str, ...] = OUTPUTS

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        output = self.model(pixel_values)
        return output.class_queries_logits, output.masks_queries_logits


class EncoderPart(Exportable):
    """PMT's frozen encoder: images → levels (B, K, T, D)."""

    outputs = (LEVELS,)

    def forward(self, pixel_values: Tensor) -> Tensor:
        grid = self.model.patch_grid(pixel_values)
        return torch.stack(self.model.encoder(pixel_values, self.model.config.interaction_indices, grid), dim=1)


class DecoderPart(Exportable):
    """PMT without its encoder: levels (B, K, T, D) of images of one size → classes and masks."""

    input = LEVELS

    def __init__(self, model: PMTForUniversalSegmentation, size: tuple[int, int]):
        super().__init__(model)
        self.size = size

    def forward(self, encoder_levels: Tensor) -> tuple[Tensor, Tensor]:
        images = encoder_levels.new_zeros(encoder_levels.shape[0], self.model.config.num_channels, *self.size)
        output = self.model(images, encoder_levels=encoder_levels)  # only the size of the images is read
        return output.class_queries_logits, output.masks_queries_logits


def write_split(model: PMTForUniversalSegmentation, kind: str, folder: Path, size, precision: str) -> Path:
    """Write the encoder to a folder of its own and the decoder beside it. Returns the path of the decoder's file."""
    encoder, decoder = EncoderPart(model).eval(), DecoderPart(model, size).eval()
    pixels = torch.zeros(2, model.config.num_channels, *size)
    file = ENGINES[kind].file
    (folder / ENCODER).mkdir(exist_ok=True)
    WRITERS[kind](encoder, pixels, folder / ENCODER / file, precision)
    WRITERS[kind](decoder, encoder(pixels), folder / file, precision)
    return folder / file


def exportable(model: nn.Module) -> Exportable:
    """Wrap the model for export, in evaluation mode and without masked attention. Changes the model."""
    model.eval()
    model.set_attn_mask_probs([0.0] * model.config.num_blocks)
    return Exportable(model).eval()


def write_file(
    model: Exportable,
    kind: str,
    folder: Path,
    size: tuple[int, int],
    precision: str = "fp32",
    calibration: Sequence[np.ndarray] = (),
    dynamic_size: bool = False,
) -> Path:
    """Write `model` for an engine and return the path of the file.

    Args:
        kind: "openvino" or "onnx".
        size: (H, W) in pixels, fixed in the file unless `dynamic_size`.
        precision: "fp32", "bf16" (OpenVINO), "fp16" (ONNX), or "int8" for the matrix products of the encoder.
        calibration: for int8, inputs (B, 3, H, W) of real images.

    Raises:
        ValueError: if the model cannot be quantized, or learned positions fix its size.
    """
    config = model.model.config
    if precision == "int8" and not config.blocks_are_the_encoders:
        raise ValueError(f"int8 is for EoMT; export a {config.model_type!r} model in floating point")
    if dynamic_size and config.resamples_positions:
        raise ValueError(
            f"a {config.model_type!r} model has learned positions, which an engine cannot resample to another size; "
            "export one folder for each size (DINOv3 has rotary positions, for any size)"
        )
    path = folder / ENGINES[kind].file
    example = torch.zeros(2, config.num_channels, *size)
    WRITERS[kind](model, example, path, precision, calibration, dynamic_size)
    return path


def _shapes(model: Exportable, dynamic_size: bool) -> dict:
    """`dynamic_shapes` of torch's exporters: the batch, and with `dynamic_size` both sides."""
    free = {0: torch.export.Dim("batch", min=1)}
    if dynamic_size:
        patch = as_pair(model.model.config.patch_size)
        for axis, name, side in ((2, "rows", patch[0]), (3, "columns", patch[1])):
            free[axis] = side * torch.export.Dim(name, min=2, max=MAX_SIDE // side)
    return {model.input: free}


@torch.no_grad()
def _write_openvino(
    model: Exportable, example: Tensor, path: Path, precision: str, calibration=(), dynamic_size: bool = False
) -> None:
    import openvino

    program = torch.export.export(model, (example,), dynamic_shapes=_shapes(model, dynamic_size))
    converted = openvino.convert_model(program)
    for output, name in zip(converted.outputs, model.outputs):
        output.get_tensor().set_names({name})
    if not dynamic_size:
        converted.reshape([-1, *example.shape[1:]])
    if precision == "int8":
        converted = _quantize_openvino(converted, model.model.config, calibration)
    converted.set_rt_info(precision, [PRECISION_KEY])
    openvino.save_model(converted, path, compress_to_fp16=False)


def _quantize_openvino(model, config, calibration):
    """Quantize the matrix products of the encoder to int8 by NNCF's transformer preset. The heads stay as they are."""
    import nncf

    nncf.set_log_level(logging.ERROR)  # by default it lists every ignored operation
    norms = [node.get_friendly_name() for node in model.get_ordered_ops() if node.get_type_name() == "MVN"]
    heads = nncf.Subgraph(
        inputs=[norms[-1 - config.num_upscale_blocks]],  # the final norm: each upscaling block has one norm more
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


@torch.no_grad()
def _write_onnx(
    model: Exportable, example: Tensor, path: Path, precision: str, calibration=(), dynamic_size: bool = False
) -> None:
    import onnx

    config = model.model.config
    program = torch.onnx.export(
        model,
        (example,),
        dynamo=True,
        dynamic_shapes=_shapes(model, dynamic_size),
        input_names=[model.input],
        output_names=list(model.outputs),
        verbose=False,
    )
    weight_bytes = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
    large = weight_bytes > MAX_ONNX_BYTES
    proto = program.model_proto
    if precision == "fp16":
        from onnxruntime.transformers.float16 import convert_float_to_float16

        proto = convert_float_to_float16(proto, keep_io_types=True, disable_shape_infer=large)
    onnx.helper.set_model_props(proto, {PRECISION_KEY: precision})
    if precision == "int8":
        plain = path.with_suffix(".float.onnx")
        onnx.save(proto, plain, save_as_external_data=large)
        _quantize_onnx(plain, path, config, calibration, large)
        for part in path.parent.glob(f"{plain.name}*"):
            part.unlink()
    else:
        onnx.save(proto, path, save_as_external_data=large, location=f"{path.name}.data")


def _quantize_onnx(source: Path, path: Path, config, calibration, large: bool) -> None:
    """Quantize the matrix products of the encoder to int8, one scale per column, by ONNX Runtime."""
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
    logging.disable(logging.WARNING)  # it warns of an unoptimized graph, but torch's exporter has optimized it
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


WRITERS = {"openvino": _write_openvino, "onnx": _write_onnx}
