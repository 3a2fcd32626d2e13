"""Photo to segments by `pipeline`: the built-in model, this implementation, exported engines and cheaper models.

Each row is measured in a process of its own. Fills docs/benchmarks.md and the table of the README.

python -m benchmarks engines
"""

import argparse
import io
import os
import re
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass
from datetime import date
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import (
    EomtForUniversalSegmentation,
    EomtImageProcessor,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
)

from eomt import EoMTConfig, EoMTForUniversalSegmentation, EoMTImageProcessor
from eomt.engines import ExportedEoMT
from eomt.export import exportable, write_file
from eomt.options import PredictOptions
from eomt.predict import predict
from eomt.speed.measure import cpu_name, measure_seconds
from eomt.training.card import table

from .pages import fill_parts
from .paired import DTYPES, model_pair
from .reproduce import peer_config
from .speed import PHOTOS, make_confident, photo

ROOT = Path(__file__).parents[1]
RULES = {"threshold": 0.8, "overlap_mask_area_threshold": 0.0}  # masks of random weights overlap more than 0.8
CPU = torch.device("cpu")
TITLES = {
    "built-in": "built-in, PyTorch",
    "torch": "this, PyTorch",
    "onnx": "this, ONNX Runtime",
    "openvino": "this, OpenVINO",
    "mask2former": "Mask2Former, PyTorch",
}
CHEAPER = {  # fields of the configuration
    "100 queries": {"num_queries": 100},
    "480²": {"image_size": 480},
    "320²": {"image_size": 320},
    "patch 32": {"patch_size": 32, "num_upscale_blocks": 3},
}


@dataclass(frozen=True)
class Row:
    engine: str  # a key of `TITLES`
    precision: str
    model: str = ""  # a key of `CHEAPER`, or Mask2Former's backbone; by default ViT-B at 640² with 200 queries

    @property
    def title(self) -> str:
        return f"{TITLES[self.engine]}, {self.model}" if self.model else TITLES[self.engine]

    @property
    def folder(self) -> str:
        """Folder of the saved model. The bf16 rows share it with fp32: OpenVINO computes in bf16 from the fp32 file."""
        return f"{self.title}, int8" if self.precision == "int8" else self.title


BUILT_IN = {precision: Row("built-in", precision) for precision in DTYPES}
OURS = Row("torch", "fp32")
OPENVINO = Row("openvino", "fp32")
ENGINE_ROWS = [
    *BUILT_IN.values(),
    OURS,
    Row("torch", "bf16"),
    Row("onnx", "fp32"),
    OPENVINO,
    Row("openvino", "bf16"),
    Row("openvino", "int8"),
]
CHEAPER_ROWS = [Row("openvino", precision, model) for model in CHEAPER for precision in DTYPES]
PEER_ROWS = [Row("mask2former", "fp32", swin) for swin in ("Swin-T", "Swin-L")]


def save_models(folder: Path, rows: Sequence[Row], backbone: str, image_size: int) -> None:
    """Save the models of the rows: the same weights for every engine, other random weights for the cheaper models."""
    ours, theirs = model_pair(backbone, image_size)
    theirs.save_pretrained(folder / BUILT_IN["fp32"].folder)
    EomtImageProcessor(do_pad=True, size=square(image_size)).save_pretrained(folder / BUILT_IN["fp32"].folder)
    ours.save_pretrained(folder / OURS.folder)
    EoMTImageProcessor(task="panoptic", size=image_size).save_pretrained(folder / OURS.folder)
    make_confident(ours)
    for row in rows:
        target = folder / row.folder
        if row.engine not in ("onnx", "openvino") or target.exists():
            continue
        model = ours
        if row.model:
            fields = {"image_size": image_size, "num_labels": 133, "num_queries": 200, "layerscale_value": 1.0}
            model = EoMTForUniversalSegmentation(EoMTConfig.for_backbone(backbone, **fields | CHEAPER[row.model]))
            make_confident(model)
        side = model.config.image_size
        processor = EoMTImageProcessor(task="panoptic", size=side)
        calibration = [processor(photo(size), return_tensors="pt").pixel_values.numpy() for size in PHOTOS]
        target.mkdir()
        precision = "int8" if row.precision == "int8" else "fp32"
        write_file(exportable(model), row.engine, target, (side, side), precision, calibration)
        model.config.save_pretrained(target)
        processor.save_pretrained(target)


def square(side: int) -> dict[str, int]:
    return {"shortest_edge": side, "longest_edge": side}


def load_pipeline(folder: Path, row: Row):
    source, dtype = folder / row.folder, DTYPES.get(row.precision)
    if row.engine == "mask2former":
        model = Mask2FormerForUniversalSegmentation(peer_config(row.model, 133))
        processor = Mask2FormerImageProcessor(size=square(640), pad_size={"height": 640, "width": 640})
    elif row.engine == "built-in":
        model = EomtForUniversalSegmentation.from_pretrained(source, dtype=dtype)
        model.attn_mask_probs.zero_()
        processor = EomtImageProcessor.from_pretrained(source)
    else:
        kind = EoMTForUniversalSegmentation if row.engine == "torch" else ExportedEoMT
        model = kind.from_pretrained(source, dtype=dtype)
        processor = EoMTImageProcessor.from_pretrained(source)
    if isinstance(model, torch.nn.Module):
        make_confident(model.eval())
    return transformers.pipeline("image-segmentation", model=model, image_processor=processor)


def measure_row(folder: Path, row: Row, repeats: int) -> dict:
    """Measure a row, in a process of its own.

    Returns:
        {"seconds" of each photo, "maps" of each photo: (H, W) segment of each pixel or −1, "memory": GiB or None,
        "rates": result of `predict_rates`, for some rows}.
    """
    segment = load_pipeline(folder, row)
    seconds, maps = [], []
    with torch.inference_mode():
        for size in PHOTOS:
            image = photo(size)
            label_map = np.full(size, -1, np.int16)
            for index, entry in enumerate(segment(image, **RULES)):
                label_map[np.asarray(entry["mask"]) > 0] = index
            maps.append(label_map)
            seconds.append(measure_seconds(lambda image=image: segment(image, **RULES), CPU, 0, repeats)["median"])
    found = {"seconds": seconds, "maps": maps, "memory": peak_memory()}
    if row.engine in ("onnx", "openvino") and not row.model and row.precision != "bf16":
        found["rates"] = predict_rates(folder / row.folder, segment.model.engine)
    return found


def peak_memory() -> float | None:
    """Peak memory of this process in GiB; None unless the system is Linux."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    return int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) / 2**20


def predict_rates(model: Path, engine, photos: int = 50) -> tuple[float, float]:
    """Images per second, in the exported precision: `eomt predict` over a folder of photos, and the engine alone."""
    pixels = np.zeros((1, 3, *engine.size), np.float32)
    alone = measure_seconds(lambda: engine.run(pixels), CPU, 1, 9)["median"]
    with tempfile.TemporaryDirectory() as scratch:
        images = Path(scratch, "photos")
        images.mkdir()
        for index in range(photos):
            photo(PHOTOS[0]).save(images / f"{index}.jpg")
        printed = io.StringIO()
        with redirect_stdout(printed):
            predict([str(images)], PredictOptions(model=str(model), output=Path(scratch, "results"), overlays=False))
    return float(re.search(r"([\d.]+) images/s", printed.getvalue())[1]), 1 / alone


# --- docs/benchmarks.md ----------------------------------------------------------------------------------------------


def rate_table(found: dict[Row, dict]) -> str:
    """Rates of `eomt predict` and of the engine alone."""
    lines = []
    for row, measured in found.items():
        if "rates" in measured:
            rate, alone = measured["rates"]
            lines.append((row.title, row.precision, f"{rate:.2f}", f"{alone:.2f}", f"{rate / alone:.2f}"))
    return table(("", "numbers", "`eomt predict`, photos/s", "engine alone", "share"), lines)


def engine_table(found: dict[Row, dict], rows: Sequence[Row]) -> str:
    """Seconds, and the speed relative to the built-in in the same number type and in fp32."""
    expected, lines = found[BUILT_IN["fp32"]], []
    for row in rows:
        measured, cells = found[row], []
        for index, seconds in enumerate(measured["seconds"]):
            against = f"{expected['seconds'][index] / seconds:.1f} × fp32"
            if row.precision == "bf16":
                against = f"{found[BUILT_IN['bf16']]['seconds'][index] / seconds:.1f} × bf16, {against}"
            cells.append(f"{seconds:.2f} s ({against})")
        cells.append(f"{measured['memory']:.1f} GiB" if measured["memory"] else "–")
        same_weights = not row.model and row != BUILT_IN["fp32"]
        shares = [(ours != theirs).mean() for ours, theirs in zip(measured["maps"], expected["maps"])]
        cells.append(" / ".join(f"{share:.2%}" for share in shares) if same_weights else "–")
        lines.append((row.title, row.precision, *cells))
    return table(("", "numbers", "427 × 640 photo", "1500 × 2000 photo", "memory", "pixels that differ"), lines)


def describe_machine() -> str:
    """The processor, its rate for the matrix products of ViT-B's MLP, and the versions of the packages."""
    rates = []
    for name, dtype in DTYPES.items():
        a, b = torch.randn(1805, 768, dtype=dtype), torch.randn(768, 3072, dtype=dtype)
        seconds = measure_seconds(partial(torch.matmul, a, b), CPU, 1, 5)["median"]
        rates.append(f"{2 * 1805 * 768 * 3072 / seconds / 1e9:.0f} GFLOP/s in {name}")
    packages = ("torch", "transformers", "openvino", "nncf", "onnxruntime")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    instructions = torch.backends.cpu.get_cpu_capability()
    return (
        f"{os.cpu_count()} × {cpu_name()} ({instructions}; PyTorch multiplies matrices at {' and '.join(rates)}); "
        f"{versions}"
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args(argv)
    rows, found = [*ENGINE_ROWS, *CHEAPER_ROWS, *PEER_ROWS], {}
    with tempfile.TemporaryDirectory() as folder:
        save_models(Path(folder), rows, "vit_base_patch14_reg4_dinov2", 640)
        for row in rows:
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                found[row] = process.submit(measure_row, Path(folder), row, 5).result()
            print(row.title, row.precision, found[row]["seconds"], flush=True)
    engines = engine_table(found, ENGINE_ROWS)
    fill_parts(
        ROOT / "docs/benchmarks.md",
        machine=f"Written by `python -m benchmarks engines` on {date.today().isoformat()}: {describe_machine()}.",
        engines=engines,
        rates=rate_table(found),
        models=engine_table(found, [BUILT_IN["fp32"], OPENVINO, *CHEAPER_ROWS, *PEER_ROWS]),
    )
    fill_parts(ROOT / "README.md", benchmarks=engines)
    print("written: docs/benchmarks.md, README.md")


if __name__ == "__main__":
    main()
