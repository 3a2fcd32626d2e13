"""What runs an exported EoMT: OpenVINO or ONNX Runtime; images in, class and mask logits out.

B images · Q queries · C labels · H, W pixels
"""

import importlib.util
from pathlib import Path
from queue import SimpleQueue

import numpy as np

INPUT = "pixel_values"  # (B, 3, H, W), normalized
OUTPUTS = ("class_queries_logits", "masks_queries_logits")  # (B, Q, C + 1), (B, Q, H/4, W/4)
MAX_SIDE = 4096  # pixels, of a file with free sides; the least are two patches
PRECISION_KEY = "eomt_precision"  # in the file's own metadata

Logits = tuple[np.ndarray, np.ndarray]


class OpenVINOEngine:
    """`openvino_model.xml` and `.bin`, on the CPU."""

    name = "openvino"
    file = "openvino_model.xml"
    packages = ("openvino",)
    DTYPES = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}

    def __init__(self, path: Path, dtype: str | None = None, num_requests: int | None = 1):
        import openvino

        core = openvino.Core()
        try:
            model = core.read_model(path)
        except (RuntimeError, OSError) as error:
            raise ValueError(f"{path} is not a readable OpenVINO model: {_first_line(error)}") from None
        self.precision = str(model.get_rt_info([PRECISION_KEY]).value) if model.has_rt_info([PRECISION_KEY]) else "fp32"
        _, channels, *sides = model.input(0).get_partial_shape()
        self.size = tuple(side.get_length() if side.is_static else None for side in sides)
        if None not in self.size:  # a static shape is a quarter faster, and batches gain nothing on a CPU
            model.reshape([1, channels.get_length(), *self.size])
        # Processors with bf16 would compute in bf16 unless told otherwise. Beside int8 that is what is wanted: int8
        # has cost the exactness already, and a quarter of the time is in the layers that stay in floating point.
        if dtype is None and self.precision == "int8":
            dtype = "bf16" if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "fp32"
        dtype = dtype or self.precision
        settings = {"INFERENCE_PRECISION_HINT": self.DTYPES[dtype], "PERFORMANCE_HINT": "THROUGHPUT"}
        settings["PERFORMANCE_HINT_NUM_REQUESTS"] = num_requests or 0  # 1: all cores for one; 0: no bound
        compiled = core.compile_model(model, "CPU", settings)
        computed = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        self.dtype = next(name for name, known in self.DTYPES.items() if known == computed)  # fp32 where CPUs lack it
        self._outputs = [compiled.output(name) for name in OUTPUTS]
        self.num_requests = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        self._idle = SimpleQueue()
        for _ in range(self.num_requests):
            self._idle.put(compiled.create_infer_request())

    def run(self, pixels: np.ndarray) -> Logits:
        batches = [pixels] if None in self.size else np.split(pixels, len(pixels))
        request, found = self._idle.get(), []
        try:
            for batch in batches:
                outputs = request.infer([batch])
                found.append([np.array(outputs[output]) for output in self._outputs])
        finally:
            self._idle.put(request)
        return tuple(np.concatenate(parts) for parts in zip(*found))


class ONNXEngine:
    """`model.onnx`, on the CPU."""

    name = "onnx"
    file = "model.onnx"
    packages = ("onnxruntime",)
    DTYPES = {"fp32": "float32"}
    num_requests = 1

    def __init__(self, path: Path, dtype: str | None = None, num_requests: int | None = 1):
        import onnxruntime

        try:
            self._session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no common class
            raise ValueError(f"{path} is not a readable ONNX model: {_first_line(error)}") from None
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.precision = metadata.get(PRECISION_KEY, "fp32")
        self.dtype = "fp32"
        self.size = tuple(side if isinstance(side, int) else None for side in self._session.get_inputs()[0].shape[2:])

    def run(self, pixels: np.ndarray) -> Logits:
        return tuple(self._session.run(list(OUTPUTS), {INPUT: pixels}))


ENGINES = {engine.name: engine for engine in (OpenVINOEngine, ONNXEngine)}  # fastest first


def exported_engines(folder: str | Path) -> list[str]:
    """The engines whose files lie in a folder, fastest first; none for anything but an exported folder."""
    return [name for name, engine in ENGINES.items() if Path(folder, engine.file).is_file()]


def open_engine(folder: str | Path, engine: str = "auto", dtype: str | None = None, num_requests: int | None = 1):
    """An exported folder → a running engine.

    Args:
        engine: "openvino", "onnx", or "auto": the fastest whose file is there and whose package is installed.
        dtype: "fp32", "bf16" or "fp16", what the engine computes in; the file's own precision by default.
        num_requests: see `ExportedEoMT.from_pretrained`.

    Raises:
        ValueError: when there is no such file, package or number type, or the file cannot be read.
    """
    if engine not in ("auto", *ENGINES):
        raise ValueError(f"engine is {engine!r}; choose from auto, {', '.join(ENGINES)}")
    found = exported_engines(folder)
    if not found:
        raise ValueError(f"{folder} holds no exported model ({', '.join(e.file for e in ENGINES.values())})")
    if engine != "auto" and engine not in found:
        raise ValueError(f"{folder} holds no {ENGINES[engine].file}; it was exported for {', '.join(found)}")
    candidates = found if engine == "auto" else [engine]
    usable = [name for name in candidates if not missing_packages(name)]
    if not usable:
        packages = missing_packages(candidates[0])
        raise ValueError(f"{candidates[0]} needs {' and '.join(packages)}: pip install {' '.join(packages)}")
    kind = ENGINES[usable[0]]
    if dtype is not None and dtype not in kind.DTYPES:
        raise ValueError(f"dtype is {dtype!r}; {kind.name} computes in {', '.join(kind.DTYPES)}")
    return kind(Path(folder, kind.file), dtype, num_requests)


def missing_packages(engine: str) -> list[str]:
    return [name for name in ENGINES[engine].packages if importlib.util.find_spec(name) is None]


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
