"""`eomt benchmark`: compare models by parameters, GFLOPs, latency, throughput and memory."""

import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, repeat
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import AutoImageProcessor
from transformers.utils import logging

from ..image_processing import EoMTImageProcessor
from ..image_processing.inference import FAILS_ALONE, error_line
from ..loading import usable_device
from ..options import BenchmarkOptions
from ..predict import find_images
from ..training.files import write_json
from .candidates import Candidate
from .flops import count_flops
from .measure import device_name, measure_seconds, peak_bytes, text_table


def benchmark(models: Sequence[str], options: BenchmarkOptions) -> int:
    """Measure the models and print a table. Returns the exit code: 1 if some models failed, 2 if all did."""
    require_options(options)
    logging.set_verbosity_error()
    candidates = [
        Candidate.find(model, size, task=options.task, masked=options.masked, step=step)
        for model in models
        for size in options.image_size or [None]
        for step in options.step
    ]
    device = usable_device(options.device)
    rows = []
    for candidate in tqdm(candidates, desc="benchmark", unit="model", disable=len(candidates) == 1):
        reported = candidate.reported()
        row = {"model": candidate.name, "label": candidate.label, "reported": reported.value if reported else None}
        try:
            row |= measure_candidate(candidate, options, device)
        except (*FAILS_ALONE, ImportError) as error:  # the other models are still measured
            row["error"] = error_line(error)
        rows.append(row)
    print(report(rows, options.batch_size))
    if options.json:
        names = ("dtype", "autocast", "compile", "warm_up", "repeats")
        setting = {"device": device_name(device), "torch": torch.__version__, "threads": torch.get_num_threads()}
        setting |= {name: getattr(options, name) for name in names}
        write_json(options.json, {"setting": setting, "rows": rows}, indent=2)
    failed = [row for row in rows if "error" in row]
    for row in failed:
        print(f"eomt benchmark: {row['label']}: {row['error']}", file=sys.stderr)
    if len(failed) == len(rows):
        return 2
    return 1 if failed else 0


def require_options(options: BenchmarkOptions) -> None:
    """Raise `ValueError` for options that contradict each other."""
    if options.token_merging is not None and not options.images:
        raise ValueError("--token-merging needs --images: how many tokens merge depends on the image")
    if options.autocast and options.dtype == "float32":
        raise ValueError("--autocast needs --dtype bfloat16 or float16")


def measure_candidate(candidate: Candidate, options: BenchmarkOptions, device: torch.device) -> dict:
    """Measure one model. Returns a row of the report."""
    row = {"image_size": list(candidate.image_size), "inputs_per_image": 1, "batch_size": options.batch_size}
    if options.count_only and not options.images:
        parameters, flops = candidate.count()
        return row | {"parameters": parameters, "gflops": flops / 1e9}

    dtype = getattr(torch, options.dtype)
    weights = torch.float32 if options.autocast or candidate.exported else dtype
    model = candidate.load(device, weights)
    parameters, flops = candidate.count(model)
    images = image_inputs(candidate, options.images, device, weights) if options.images else None
    if images:
        if options.token_merging is not None:
            model.set_token_merging(layers=options.merging_layers, threshold=options.token_merging)
        row["inputs_per_image"] = sum(map(len, images)) / len(images)
        if candidate.exported:  # an engine cannot be counted, but its inputs all cost the same
            flops *= row["inputs_per_image"]
        else:
            flops = sum(count_flops(model, pixel_values=pixels) for pixels in images) / len(images)
    row |= {"parameters": parameters, "gflops": flops / 1e9}
    if options.count_only:
        return row

    called = torch.compile(model) if options.compile and not candidate.exported else model
    mixed = options.autocast and not candidate.exported

    def forward(batch: int) -> Callable[[], None]:
        """A function that runs the model on the next batch."""
        inputs = batches(images, batch) if images else repeat(candidate.inputs(batch, device, weights))

        def run() -> None:
            with torch.inference_mode(), torch.autocast(device.type, dtype=dtype, enabled=mixed):
                called(**next(inputs))

        return run

    single = forward(1)
    latency = measure_seconds(single, device, options.warm_up, options.repeats)
    if candidate.exported:
        row |= {"engine": model.engine.name, "precision": model.engine.precision, "computes_in": model.engine.dtype}
    row |= {
        "masked": bool(getattr(model, "infers_with_masks", False)),
        "latency_ms": {name: 1e3 * value for name, value in latency.items()},
        "images_per_second": 1 / latency["median"],
        "throughput": 1 / latency["median"],
        "peak_memory_bytes": peak_bytes(single, model, device),
    }
    if options.batch_size > 1:
        batched = forward(options.batch_size)
        seconds = measure_seconds(batched, device, options.warm_up, options.repeats)["median"]
        row["throughput"] = options.batch_size / seconds
        row["peak_memory_bytes"] = peak_bytes(batched, model, device)
    return row


def image_inputs(candidate: Candidate, paths: Sequence[str], device, dtype: torch.dtype) -> list[Tensor]:
    """Model inputs (V, 3, H, W) of each image, by the model's processor. Paths are image files and folders."""
    if not candidate.is_eomt:
        raise ValueError(f"--images: {candidate.name} is a {candidate.config.model_type!r}; images are for EoMT only")
    if candidate.pretrained and Path(candidate.name, "preprocessor_config.json").is_file():
        processor = AutoImageProcessor.from_pretrained(candidate.name, size=candidate.image_size)
    else:
        processor = EoMTImageProcessor(task=candidate.config.task, size=candidate.image_size)
    files = [str(file) for file in find_images(paths).values()]
    return [processor(file, return_tensors="pt")["pixel_values"].to(device, dtype) for file in files]


def batches(images: Sequence[Tensor], size: int) -> Iterator[dict[str, Tensor]]:
    """Endless batches of `size` images: their inputs (V, 3, H, W)."""
    source = cycle(images)
    while True:
        yield {"pixel_values": torch.cat([next(source) for _ in range(size)])}


def report(rows: list[dict], batch_size: int) -> str:
    """Format rows as aligned text, with a dash for missing measurements."""
    columns = {
        "model": lambda row: row["label"],
        "params": lambda row: f"{row['parameters'] / 1e6:.1f}M",
        "GFLOPs": lambda row: f"{row['gflops']:.1f}",
        "latency ms": lambda row: f"{row['latency_ms']['median']:.1f}",
        "p10–p90": lambda row: f"{row['latency_ms']['p10']:.1f}–{row['latency_ms']['p90']:.1f}",
        "images/s": lambda row: f"{row['images_per_second']:.2f}",
        "peak GiB": lambda row: f"{row['peak_memory_bytes'] / 2**30:.2f}",
        "reported": lambda row: f"{row['reported']:.1f}",
    }
    if batch_size > 1:
        columns[f"images/s at {batch_size}"] = lambda row: f"{row['throughput']:.2f}"

    def cell(row: dict, write: Callable[[dict], str]) -> str:
        try:
            return write(row)
        except (KeyError, TypeError):
            return "–"

    cells = [[cell(row, write) for write in columns.values()] for row in rows]
    return text_table([list(columns), *cells], align_right=True)
