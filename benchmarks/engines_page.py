"""What `benchmarks.engines` measured → docs/benchmarks.md, and its excerpt in the README."""

import os
import re
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch

from eomt.speed.measure import cpu_name

from .engine_rows import DTYPES, ENGINE_ROWS, FULL, MODEL_ROWS, OTHER_ROWS, Row

ROOT = Path(__file__).parents[1]
PAGE, README = ROOT / "docs" / "benchmarks.md", ROOT / "README.md"
TEXT = """# Benchmarks

Written by `python -m benchmarks engines` on {day}: {machine}.

## Engines

A photo through `pipeline("image-segmentation")` to panoptic segments: EoMT with ViT-B at 640², 200 queries, 133
classes, the same random weights with 50 confident queries in every row, median of 5. In brackets: how many times as
fast as the model built into transformers, in the same type of numbers and in fp32. Memory is the process's peak over
both photos. Pixels that differ: share of each photo's pixels in another segment than the built-in's in fp32; random
weights have many near-ties, so that a trained model's differ less (see [deployment](deployment.md)).

{engines}

`eomt predict` over a folder of 50 photos of 427 × 640, results written, beside the engine's bare forward pass:

| | numbers | `eomt predict`, photos/s | engine alone | share |
|---|---|---|---|---|
{rates}

## Cheaper models, and Mask2Former

The same backbone with fewer queries, smaller inputs, or patches of 32 pixels; transformers' Mask2Former at 640² with
random weights and a quarter of its queries confident. What they cost in quality has to be trained to be known.

{models}
"""


def write(found: dict[Row, dict]) -> None:
    """The page, and the README's excerpt of it."""
    engines = table(found, ENGINE_ROWS)
    rates = [
        f"| {row.title} | {row.precision} | {rate:.2f} | {alone:.2f} | {rate / alone:.2f} |"
        for row, (rate, alone) in ((row, found[row].get("throughput") or (0, 0)) for row in ENGINE_ROWS)
        if alone
    ]
    parts = {
        "engines": "\n".join(engines),
        "models": "\n".join(table(found, [ENGINE_ROWS[0], Row(FULL, "openvino", "fp32"), *MODEL_ROWS, *OTHER_ROWS])),
        "rates": "\n".join(rates),
    }
    PAGE.write_text(TEXT.format(machine=machine(), day=date.today().isoformat(), **parts))
    mark = r"(<!-- benchmarks -->\n).*?(<!-- /benchmarks -->)"
    excerpt = "\n".join(engines) + "\n"
    README.write_text(re.sub(mark, lambda m: m[1] + excerpt + m[2], README.read_text(), flags=re.DOTALL))
    print(f"written: {PAGE}, {README}")


def table(found: dict[Row, dict], rows: list[Row]) -> list[str]:
    """Markdown: seconds, and how many times as fast as the built-in in the same number type and in fp32."""
    built_in = {row.precision: found[row]["seconds"] for row in ENGINE_ROWS if row.engine == "built-in"}
    header = ("", "numbers", "427 × 640 photo", "1500 × 2000 photo", "memory", "pixels that differ")
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for row in rows:
        cells = []
        for index, seconds in enumerate(found[row]["seconds"]):
            against = f"{built_in['fp32'][index] / seconds:.1f} × fp32"
            if row.precision == "bf16":
                against = f"{built_in['bf16'][index] / seconds:.1f} × bf16, {against}"
            cells.append(f"{seconds:.2f} s ({against})")
        memory = f"{found[row]['memory']:.1f} GiB" if found[row]["memory"] else "–"
        shares = found[row].get("differing")
        differ = " / ".join(f"{share:.2%}" for share in shares) if shares and row != ENGINE_ROWS[0] else "–"
        lines.append(f"| {row.title} | {row.precision} | {cells[0]} | {cells[1]} | {memory} | {differ} |")
    return lines


def machine() -> str:
    """The processor, its cores and what speeds up matrix products, and the packages' versions."""
    file = Path("/proc/cpuinfo")
    found = re.search(r"flags\s*:(.+)", file.read_text()) if file.exists() else None
    flags = found[1].split() if found else []
    helpful = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")
    wanted = [flag for flag in helpful if flag in flags]
    packages = ("torch", "transformers", "openvino", "nncf", "onnxruntime")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    products = " and ".join(f"{gigaflops(dtype):.0f} GFLOP/s in {name}" for name, dtype in DTYPES.items())
    return (
        f"{os.cpu_count()} × {cpu_name()} ({', '.join(wanted)}; PyTorch multiplies matrices at {products}); {versions}"
    )


def gigaflops(dtype: torch.dtype) -> float:
    """Of a matrix product as in ViT-B's MLP, best of 20."""
    a, b = torch.randn(1805, 768, dtype=dtype), torch.randn(768, 3072, dtype=dtype)
    times = []
    for _ in range(20):
        started = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - started)
    return 2 * 1805 * 768 * 3072 / min(times) / 1e9
