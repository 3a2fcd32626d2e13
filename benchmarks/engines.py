"""From photo to segments through `pipeline`, ViT-B at 640²: the built-in, this implementation, and exported engines.

The same weights everywhere; each row runs in a process of its own. Writes docs/benchmarks.md.
"""

import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch

from .inference import confident, photo
from .models import pair

BACKBONE = "vit_base_patch14_reg4_dinov2"
PHOTOS = ((427, 640), (1500, 2000))  # height, width
ROWS = (  # name, engine, number type
    ("built-in, PyTorch", "built-in", "fp32"),
    ("built-in, PyTorch", "built-in", "bf16"),
    ("this, PyTorch", "torch", "fp32"),
    ("this, PyTorch", "torch", "bf16"),
    ("this, ONNX Runtime", "onnx", "fp32"),
    ("this, OpenVINO", "openvino", "fp32"),
    ("this, OpenVINO", "openvino", "bf16"),
    ("this, OpenVINO", "openvino", "int8"),
)
RULES = {"threshold": 0.8, "overlap_mask_area_threshold": 0.0}  # masks of random weights overlap more than 0.8
TABLE = Path(__file__).parents[1] / "docs" / "benchmarks.md"


def export_all(folder: Path) -> None:
    """The same weights for every row."""
    from transformers import EomtImageProcessor

    from eomt import EoMTImageProcessor
    from eomt.inference.exporting import export, exportable

    ours, theirs = pair(BACKBONE)
    theirs.save_pretrained(folder / "built-in")
    EomtImageProcessor(do_pad=True, size={"shortest_edge": 640, "longest_edge": 640}).save_pretrained(
        folder / "built-in"
    )
    processor = EoMTImageProcessor(task="panoptic", size=640)
    ours.save_pretrained(folder / "torch")
    confident(ours)
    calibration = [processor(photo(size), return_tensors="pt").pixel_values.numpy() for size in PHOTOS]
    for kind, precision in (("onnx", "fp32"), ("openvino", "fp32"), ("openvino", "int8")):
        target = folder / f"{kind}-{precision}"
        target.mkdir()
        export(exportable(ours), kind, target, (640, 640), precision, calibration)
        ours.config.save_pretrained(target)
    for target in folder.iterdir():
        if target.name != "built-in":
            processor.save_pretrained(target)


def load(folder: Path, engine: str, precision: str):
    """The row's pipeline."""
    import transformers

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}.get(precision)
    if engine == "built-in":
        model = transformers.EomtForUniversalSegmentation.from_pretrained(folder / engine, dtype=dtype)
        model.attn_mask_probs.zero_()
        confident(model)
        processor = transformers.EomtImageProcessor.from_pretrained(folder / engine)
        return transformers.pipeline("image-segmentation", model=model, image_processor=processor)
    from transformers import AutoImageProcessor

    import eomt
    from eomt.inference.exported import ExportedEoMT

    if engine == "torch":
        source = folder / engine
        model = eomt.EoMTForUniversalSegmentation.from_pretrained(source, dtype=dtype)
        confident(model)
    else:
        source = folder / f"{engine}-{'int8' if precision == 'int8' else 'fp32'}"
        model = ExportedEoMT.from_pretrained(source, engine=engine, dtype=None if precision == "int8" else precision)
    processor = AutoImageProcessor.from_pretrained(source)
    return transformers.pipeline("image-segmentation", model=model, image_processor=processor)


def measure(folder: str, engine: str, precision: str, repeats: int = 5) -> None:
    """One row, in its own process: prints json with seconds and segments of each photo."""
    segment = load(Path(folder), engine, precision)
    row = {"seconds": [], "segments": []}
    with torch.inference_mode():
        for size in PHOTOS:
            image = photo(size)
            row["segments"].append(len(segment(image, **RULES)))
            times = []
            for _ in range(repeats):
                started = time.perf_counter()
                segment(image, **RULES)
                times.append(time.perf_counter() - started)
            row["seconds"].append(statistics.median(times))
    print(json.dumps(row))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        export_all(Path(folder))
        rows = []
        for name, engine, precision in ROWS:
            code = f"from benchmarks.engines import measure; measure({folder!r}, {engine!r}, {precision!r})"
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            rows.append((name, precision, json.loads(done.stdout.splitlines()[-1])))
            print(name, precision, rows[-1][2], flush=True)
    lines = table(rows)
    print("\n".join(lines))
    TABLE.write_text(PAGE.format(table="\n".join(lines), machine=machine(), day=date.today().isoformat()))
    print(f"written: {TABLE}")


def table(rows) -> list[str]:
    """Markdown: seconds, and how many times as fast as the built-in in the same number type and in fp32."""
    built_in = {precision: row["seconds"] for name, precision, row in rows if name.startswith("built-in")}
    lines = ["| | numbers | 427 × 640 photo | 1500 × 2000 photo |", "|---|---|---|---|"]
    for name, precision, row in rows:
        cells = []
        for index, seconds in enumerate(row["seconds"]):
            same = built_in.get(precision, built_in["fp32"])[index]
            against = f"{built_in['fp32'][index] / seconds:.1f} × fp32"
            if precision == "bf16":
                against = f"{same / seconds:.1f} × bf16, {against}"
            cells.append(f"{seconds:.2f} s ({against})")
        lines.append(f"| {name} | {precision} | {cells[0]} | {cells[1]} |")
    return lines


def machine() -> str:
    """The processor, its cores and what speeds up matrix products, and the packages' versions."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")]
    flags = next((line for line in info.splitlines() if line.startswith("flags")), "").split()
    helpful = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")
    wanted = [flag for flag in helpful if flag in flags]
    packages = ("torch", "transformers", "openvino", "nncf", "onnxruntime")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    return f"{len(names) or '?'} × {names[0] if names else platform.processor()} ({', '.join(wanted)}); {versions}"


PAGE = """# Benchmarks

Written by `python -m benchmarks engines` on {day}: {machine}.

A photo through `pipeline("image-segmentation")` to panoptic segments: EoMT with ViT-B at 640², 200 queries, 133
classes, random weights with 50 confident queries, median of 5. In brackets: how many times as fast as the model built
into transformers, in the same type of numbers and in fp32. OpenVINO's bf16 and int8 change the masks a little: see
[deployment](deployment.md).

{table}
"""


if __name__ == "__main__":
    main()
