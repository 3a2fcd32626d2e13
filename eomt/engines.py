"""Inference with exported models: the files of `eomt export`, run by OpenVINO or ONNX Runtime.

model = ExportedEoMT.from_pretrained("exported")
pipeline("image-segmentation", model=model, image_processor=AutoImageProcessor.from_pretrained("exported"))

B images · Q queries · C labels · H, W pixels
"""

import importlib.util
from functools import cache
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import torch
from torch import Tensor
from transformers.models.auto.modeling_auto import MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES

from .configuration import EoMTConfig, as_pair
from .modeling_eomt import EoMTForUniversalSegmentationOutput
from .modeling_eomt.outputs import group_by_image, is_grouped
from .modeling_eomt.pretrained import load_config
from .training.files import ENCODER

INPUT = "pixel_values"  # (B, 3, H, W), normalized
OUTPUTS = ("class_queries_logits", "masks_queries_logits")  # (B, Q, C + 1), (B, Q, H/4, W/4)
LEVELS = "encoder_levels"  # (B, K, T, D): output of PMT's encoder, input of its decoder
MAX_SIDE = 4096  # pixels: the largest side with --dynamic-size; the smallest is two patches
PRECISION_KEY = "eomt_precision"  # in the metadata of the file
DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}

Logits = tuple[np.ndarray, np.ndarray]

# The pipeline checks class names against this table and would log an error for ours.
MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES["ExportedEoMT"] = "ExportedEoMT"


@cache
def openvino_core():
    """The one OpenVINO core of the process.

    Each core sets the stack of the signal handlers. If two cores are dropped in the order in which they were made, the
    stack lies in freed memory, and the next signal ends the process.
    """
    import openvino

    return openvino.Core()


class OpenVINOEngine:
    """`openvino_model.xml` and `.bin`, on the CPU."""

    name = "openvino"
    file = "openvino_model.xml"
    package = "openvino"
    type_names = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}  # OpenVINO's

    def __init__(self, path: Path, dtype: str | None = None, num_requests: int | None = 1):
        core = openvino_core()
        model = core.read_model(path)
        self.precision = str(model.get_rt_info([PRECISION_KEY]).value) if model.has_rt_info([PRECISION_KEY]) else "fp32"
        _, channels, *sides = model.input(0).get_partial_shape()
        self.size = tuple(side.get_length() if side.is_static else None for side in sides)
        if None not in self.size:  # a static shape is a quarter faster, and batches are no faster on a CPU
            model.reshape([1, channels.get_length(), *self.size])
        # Without a hint OpenVINO computes in bf16 on CPUs that have it. That is for int8 files only: they are inexact
        # anyway, and a quarter of their time is spent in the layers that stay in floating point.
        if dtype is None and self.precision == "int8":
            dtype = "bf16" if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "fp32"
        settings = {
            "INFERENCE_PRECISION_HINT": self.type_names[dtype or self.precision],
            "PERFORMANCE_HINT": "THROUGHPUT",
            "PERFORMANCE_HINT_NUM_REQUESTS": num_requests or 0,  # 1: all cores for one request; 0: no limit
        }
        compiled = core.compile_model(model, "CPU", settings)
        computed = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        self.dtype = next(name for name, theirs in self.type_names.items() if theirs == computed)  # not always the hint
        self.num_requests = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        names = {name for output in compiled.outputs for name in output.get_names()}
        self._outputs = [compiled.output(name) for name in (*OUTPUTS, LEVELS) if name in names]
        self._idle = SimpleQueue()
        for _ in range(self.num_requests):
            self._idle.put(compiled.create_infer_request())

    def run(self, pixels: np.ndarray) -> Logits:
        batches = [pixels] if None in self.size else np.split(pixels, len(pixels))
        request, found = self._idle.get(), []
        try:
            for batch in batches:
                outputs = request.infer([batch])
                found.append([np.array(outputs[output]) for output in self._outputs])  # copies
        finally:
            self._idle.put(request)
        return tuple(np.concatenate(parts) for parts in zip(*found))


class ONNXEngine:
    """`model.onnx`, on the CPU."""

    name = "onnx"
    file = "model.onnx"
    package = "onnxruntime"
    type_names = {"fp32": "float32"}
    num_requests = 1

    def __init__(self, path: Path, dtype: str | None = None, num_requests: int | None = 1):
        import onnxruntime

        self._session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0]
        names = {output.name for output in self._session.get_outputs()}
        self._outputs = [name for name in (*OUTPUTS, LEVELS) if name in names]
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.precision = metadata.get(PRECISION_KEY, "fp32")
        self.dtype = "fp32"
        self.size = tuple(side if isinstance(side, int) else None for side in self._input.shape[2:])

    def run(self, pixels: np.ndarray) -> Logits:
        return tuple(self._session.run(self._outputs, {self._input.name: pixels}))


class SharedEncoder:
    """PMT's encoder for the decoders of several tasks. Keeps the levels of the last images, which it encodes once."""

    def __init__(self, engine):
        self.engine = engine
        self._last: tuple[np.ndarray, np.ndarray] | None = None  # images, levels

    def levels(self, pixels: np.ndarray) -> np.ndarray:
        last = self._last
        if last is None or not np.array_equal(last[0], pixels):
            (levels,) = self.engine.run(pixels)
            last = self._last = (pixels.copy(), levels)  # a copy: callers may fill their tensor again
        return last[1]


class SplitEngine:
    """PMT in two files, encoder and decoder."""

    def __init__(self, encoder: SharedEncoder, decoder):
        self.encoder, self.decoder = encoder, decoder
        self.name, self.precision, self.dtype = decoder.name, decoder.precision, decoder.dtype
        self.size, self.num_requests = encoder.engine.size, decoder.num_requests

    def run(self, pixels: np.ndarray) -> Logits:
        return self.decoder.run(self.encoder.levels(pixels))


ENGINES = {engine.name: engine for engine in (OpenVINOEngine, ONNXEngine)}  # fastest first


def exported_engines(folder: str | Path) -> list[str]:
    """Names of the engines whose files are in a folder, fastest first. Empty for other folders and hub names."""
    return [name for name, engine in ENGINES.items() if Path(folder, engine.file).is_file()]


def is_installed(engine: str) -> bool:
    return importlib.util.find_spec(ENGINES[engine].package) is not None


def open_engine(
    folder: str | Path, engine: str = "auto", dtype: str | None = None, num_requests: int | None = 1, encoder=None
):
    """Load the file of an exported folder, or both of a split PMT. Arguments as for `ExportedEoMT.from_pretrained`,
    but `encoder` is a `SharedEncoder`.
    """
    if engine not in ("auto", *ENGINES):
        raise ValueError(f"engine is {engine!r}; choose from auto, {', '.join(ENGINES)}")
    wanted = list(ENGINES) if engine == "auto" else [engine]
    found = [name for name in exported_engines(folder) if name in wanted]
    if not found:
        files = " or ".join(ENGINES[name].file for name in wanted)
        raise ValueError(f"{folder} holds no exported model ({files})")
    usable = [name for name in found if is_installed(name)]
    if not usable:
        package = ENGINES[found[0]].package
        raise ValueError(f"{folder} was exported for {found[0]}, which is not installed: pip install {package}")
    kind = ENGINES[usable[0]]
    if dtype is not None and dtype not in kind.type_names:
        raise ValueError(f"dtype is {dtype!r}; {kind.name} computes in {', '.join(kind.type_names)}")
    path = Path(folder, kind.file)
    try:
        opened = kind(path, dtype, num_requests)
        own_encoder = Path(folder, ENCODER, kind.file)
        if encoder is None and own_encoder.is_file():
            encoder = SharedEncoder(kind(own_encoder, dtype, num_requests))
    except Exception as error:  # the engines have no common error for damaged files
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[0] if lines else type(error).__name__
        raise ValueError(f"{path} cannot be read by {kind.name}: {reason[:200]}") from None
    return opened if encoder is None else SplitEngine(encoder, opened)


class ExportedEoMT:
    """An exported model, called like the PyTorch model. For inference only.

    Inputs and outputs are float32 on the CPU, also if the engine computes in another type. Masked attention is off.
    """

    main_input_name = INPUT
    device = torch.device("cpu")
    dtype = torch.float32
    training = False

    def __init__(self, config: EoMTConfig, engine):
        self.config = config
        self.engine = engine

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, engine: str = "auto", dtype=None, num_requests: int | None = 1, encoder=None
    ) -> "ExportedEoMT":
        """Load a folder of `eomt export`.

        Args:
            engine: "openvino", "onnx", or "auto": the fastest one that has a file and is installed.
            dtype: number type of the computation: "fp32", "bf16", "fp16" or torch's types. By default the exported
                precision.
            num_requests: largest number of images that OpenVINO computes at the same time, called from as many
                threads. 1: lowest latency; None: highest throughput. Requests share the cores. Other engines compute
                one image at a time.
            encoder: for a PMT in two files (`eomt export --split-encoder`), another such model to share its encoder.
                The folder then needs no encoder of its own.

        Raises:
            ValueError: for a folder, a file, an engine or a number type that cannot be used, or an encoder that the
                folder was not exported with.
        """
        if not Path(folder, "config.json").is_file():
            raise ValueError(f"there is no config.json in {str(folder)!r}; give a folder of eomt export")
        config = load_config(folder)
        config.name_or_path = str(folder)
        shared = None
        if encoder is not None:
            _require_same_encoder(config, encoder.config)
            shared, engine = encoder.engine.encoder, encoder.engine.name
        return cls(config, open_engine(folder, engine, DTYPES.get(dtype, dtype), num_requests, shared))

    def __call__(self, pixel_values: Tensor, patch_offsets: list | None = None, **kwargs):
        """Normalized images (B, 3, H, W) → class_queries_logits (B, Q, C + 1), masks_queries_logits (B, Q, H/4, W/4).

        Raises:
            ValueError: for an image size that the file does not take, or if labels are given.
        """
        if kwargs.get("mask_labels") is not None or kwargs.get("class_labels") is not None:
            raise ValueError("an exported model has no loss; leave out mask_labels and class_labels")
        self._require_size(pixel_values)
        pixels = pixel_values.detach().to("cpu", torch.float32).contiguous().numpy()
        classes, masks = self.engine.run(pixels)
        output = EoMTForUniversalSegmentationOutput(
            class_queries_logits=torch.from_numpy(classes),
            masks_queries_logits=torch.from_numpy(masks),
            patch_offsets=patch_offsets,
        )
        return group_by_image(output) if is_grouped(patch_offsets) else output

    forward = __call__

    def _require_size(self, pixel_values: Tensor) -> None:
        channels, sides = self.config.num_channels, self.engine.size
        if pixel_values.ndim != 4 or pixel_values.shape[1] != channels:
            raise ValueError(
                f"pixel_values have shape {tuple(pixel_values.shape)}; give (batch, {channels}, height, width)"
            )
        height, width = pixel_values.shape[2:]
        if any(side not in (None, given) for side, given in zip(sides, (height, width))):
            raise ValueError(
                f"pixel_values are {height} × {width} pixels; the file takes {sides[0]} × {sides[1]}: use its "
                "image processor, or export this size or a dynamic size"
            )
        for fixed, given, patch in zip(sides, (height, width), as_pair(self.config.patch_size)):
            if fixed is None and (given % patch or not 2 * patch <= given <= MAX_SIDE):
                raise ValueError(
                    f"pixel_values are {height} × {width} pixels; the file takes sides that are multiples of {patch}, "
                    f"from {2 * patch} to {MAX_SIDE}: use its image processor"
                )

    @property
    def num_requests(self) -> int:
        """Number of calls computed at the same time. Further calls wait."""
        return self.engine.num_requests

    # --- the interface of a model, for transformers' pipeline and the commands ---------------------------------------

    @property
    def attn_mask_probs(self) -> Tensor:
        return torch.zeros(self.config.num_blocks)

    def set_attn_mask_probs(self, probabilities) -> None:
        if any(probabilities):
            raise ValueError("an exported model has no masked attention; use the original model")

    def set_token_merging(self, *args, **kwargs) -> None:
        raise ValueError("an exported model cannot merge tokens: its file has fixed shapes; use the original model")

    def eval(self) -> "ExportedEoMT":
        return self

    def to(self, *args, **kwargs) -> "ExportedEoMT":
        return self

    def can_generate(self) -> bool:
        return False

    def parameters(self):
        return iter((torch.empty(0),))  # callers read device and dtype of the inputs from it


def _require_same_encoder(config, shared) -> None:
    """Raise `ValueError` unless a split PMT was exported with the encoder of the configuration `shared`."""
    digest = getattr(config, "encoder_digest", None)
    if not digest or digest != getattr(shared, "encoder_digest", None):
        raise ValueError(f"{config.name_or_path} was not exported with the encoder of {shared.name_or_path}")
    for name in ("interaction_indices", "image_size", "patch_size"):
        ours, theirs = getattr(config, name), getattr(shared, name)
        if name != "interaction_indices":
            ours, theirs = as_pair(ours), as_pair(theirs)
        if ours != theirs:
            raise ValueError(f"{config.name_or_path} was exported with {name} {ours}, the encoder with {theirs}")
