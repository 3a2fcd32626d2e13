"""What `eomt benchmark` does: measure the candidates one after the other → a table, a json file."""

import sys

import torch
from tqdm.auto import tqdm
from transformers.utils import logging

from ..configuration import as_pair
from ..configuration.sizes import parse_size
from ..image_processing.geometry import placement
from ..image_processing.inference import FAILS_ALONE, error_line
from ..inference.loading import merge_tokens, usable_device
from ..training.files import require_free, write_json
from .candidates import Candidate
from .measure import device_name, measure_seconds, peak_bytes
from .photos import batches, mean_flops, photo_inputs
from .text_table import text_table


def compare(args) -> int:
    """Measure and report; the exit code: 1 where some could not be run (out of memory, say), which are listed, and 2
    where none could."""
    if args.json:
        require_free(args.json, args.force)
    logging.set_verbosity_error()
    candidates = _candidates(args)
    device = usable_device(args.device)
    rows = []
    for candidate in tqdm(candidates, desc="benchmark", unit="model", disable=len(candidates) == 1):
        reported = candidate.reported()
        row = {"model": candidate.name, "label": candidate.label, "reported": reported and reported.value}
        try:
            row |= _measure(candidate, args, device)
        except (*FAILS_ALONE, ImportError) as error:  # one that does not fit the device leaves the others their turn
            row["error"] = error_line(error)
        rows.append(row)
    print(_table(rows))
    setting = {
        "device": device_name(device), "dtype": args.dtype, "autocast": args.autocast, "compile": args.compile,
        "torch": torch.__version__, "threads": torch.get_num_threads(), "warm_up": args.warm_up,
        "repeats": args.repeats,
    }  # fmt: skip
    if args.json:
        write_json(args.json, {"setting": setting, "rows": rows}, indent=2)
    failed = [row for row in rows if "error" in row]
    for row in failed:
        print(f"eomt benchmark: {row['label']}: {row['error']}", file=sys.stderr)
    if len(failed) == len(rows):
        return 2
    return 1 if failed else 0


def _candidates(args) -> list:
    names = ("num_labels", "num_queries", "num_blocks")
    overrides = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    sizes = [parse_size(size) for size in args.image_size] if args.image_size else [None]
    return [
        Candidate.find(model, size, task=args.task, masked=args.masked, step=step, **overrides)
        for model in args.model
        for size in sizes
        for step in args.step or [5]
    ]


def _measure(candidate, args, device) -> dict:
    crops = 1
    if args.photo:
        crops = len(placement(*as_pair(args.photo), candidate.image_size, windowed=True).windows)
    row = {"image_size": list(candidate.image_size), "inputs_per_image": crops, "batch_size": args.batch_size}
    if args.count_only and not args.images:
        parameters, flops = candidate.count()
        return row | {"parameters": parameters, "gflops": crops * flops / 1e9}

    dtype = getattr(torch, args.dtype)
    weights = torch.float32 if args.autocast or candidate.exported else dtype
    model = candidate.load(device, weights)
    parameters, flops = candidate.count(model)
    photos = photo_inputs(candidate, args.images, device, weights) if args.images else None
    if photos:
        merge_tokens(model, args.token_merging, args.merging_layers)
        row["inputs_per_image"] = sum(map(len, photos)) / len(photos)
        # An engine's operations are not seen here; an exported model merges no tokens, so every input costs the same.
        flops = flops * row["inputs_per_image"] if candidate.exported else mean_flops(model, photos)
        crops = 1
        if args.count_only:
            return row | {"parameters": parameters, "gflops": flops / 1e9}
    called = torch.compile(model) if args.compile and not candidate.exported else model
    autocast = torch.autocast(device.type, dtype=dtype, enabled=args.autocast and not candidate.exported)

    def forward(images: int):
        inputs = None if photos else candidate.inputs(images * crops, device, weights)
        source = batches(photos, images) if photos else None

        def run():
            with torch.inference_mode(), autocast:
                called(**(inputs or {"pixel_values": next(source)}))

        return run

    single = forward(1)
    latency = measure_seconds(single, device, args.warm_up, args.repeats)
    if candidate.exported:
        row |= {"engine": model.engine.name, "precision": model.engine.precision, "computes_in": model.engine.dtype}
    row |= {
        "parameters": parameters,
        "gflops": crops * flops / 1e9,
        "masked": bool(getattr(model, "attn_mask_probs", torch.zeros(1)).any()),
        "latency_ms": {name: 1e3 * value for name, value in latency.items()},
        "images_per_second": 1 / latency["median"],
        "peak_memory_bytes": peak_bytes(single, model, device),
    }
    row["throughput"] = row["images_per_second"]
    if args.batch_size > 1:
        batch = forward(args.batch_size)
        row["throughput"] = args.batch_size / measure_seconds(batch, device, args.warm_up, args.repeats)["median"]
        row["peak_memory_bytes"] = peak_bytes(batch, model, device)
    return row


def _table(rows: list[dict]) -> str:
    """Rows → aligned text; what was not measured is a dash."""
    columns = {
        "model": lambda row: row["label"],
        "params": lambda row: f"{row['parameters'] / 1e6:.1f}M",
        "GFLOPs": lambda row: f"{row['gflops']:.1f}",
        "latency ms": lambda row: f"{row['latency_ms']['median']:.1f}",
        "p10–p90": lambda row: f"{row['latency_ms']['p10']:.1f}–{row['latency_ms']['p90']:.1f}",
        "images/s": lambda row: f"{row['images_per_second']:.2f}",
        f"images/s at {rows[0].get('batch_size', 1)}": lambda row: f"{row['throughput']:.2f}",
        "peak GiB": lambda row: f"{row['peak_memory_bytes'] / 2**30:.2f}",
        "reported": lambda row: f"{row['reported']:.1f}",
    }
    if rows[0].get("batch_size", 1) == 1:
        del columns["images/s at 1"]  # said already

    def cell(row, write) -> str:
        try:
            return write(row)
        except (KeyError, TypeError):
            return "–"

    cells = [[cell(row, write) for write in columns.values()] for row in rows]
    return text_table([list(columns), *cells], align_right=True)
