"""What `eomt reproduce` does: a table of the paper beside what is counted and measured here."""

import sys
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers import AutoConfig
from transformers.utils import logging

from ..inference.loading import usable_device
from ..inference.writing import atomic, read_json, require_free, write_json
from .candidates import Candidate
from .measure import device_name, measure_seconds, peak_bytes
from .plot import plot_quality_and_speed
from .table_rows import METRIC_KEYS, TABLES, Row, deviates, read_table, why_deviates
from .text_table import text_table

DEVIATES = "≠"


def reproduce(args) -> int:
    """Print the table; write json and the picture where asked for."""
    for file in filter(None, (args.json, args.plot)):
        require_free(file, args.force)
    logging.set_verbosity_error()
    rows = read_table(TABLES[args.table])
    for number, folder in parse_runs(args.run, len(rows)):
        add_run(rows[number - 1], folder)
    device = usable_device(args.device or "cpu")
    counted: dict[str, tuple] = {}
    for row in tqdm(rows, "counting", leave=False):
        _count(row, counted)
    if args.measure:
        measured: dict[str, tuple] = {}
        for row in tqdm(rows, "measuring", leave=False):
            _measure(row, device, args, measured)
    print(table(rows))
    if args.json:
        setting = {"table": args.table, "measured_on": device_name(device) if args.measure else None}
        write_json(args.json, setting | {"rows": [as_json(row) for row in rows]}, indent=2)
    if args.plot:
        with atomic(args.plot, force=args.force) as part:
            _plot(rows, part, device if args.measure else None)
    return 0


def parse_runs(given: list[str] | None, count: int) -> list[tuple[int, Path]]:
    """["5=runs/mine"] → [(5, path)]; a row may have several, for its several metrics.

    Raises:
        ValueError: when an entry is not such a pair, or there is no such row or folder.
    """
    runs = []
    for entry in given or ():
        number, _, folder = entry.partition("=")
        if not number.isdecimal() or not 1 <= int(number) <= count or not Path(folder).is_dir():
            raise ValueError(f"--run {entry}: give ROW=FOLDER, a row's number from 1 to {count} and a run's folder")
        runs.append((int(number), Path(folder)))
    return runs


def add_run(row: Row, folder: Path) -> None:
    """Results of `eomt train` (results.json) or `eomt evaluate --output` (metrics.json), and how the run differs.

    Raises:
        ValueError: when the folder has neither, or no result of the row's metric.
    """
    if (folder / "metrics.json").is_file():
        report = read_json(folder / "metrics.json")
        found, dataset = report["metrics"], report.get("dataset")
    elif (folder / "results.json").is_file():
        results = read_json(folder / "results.json")
        found, dataset = {key.removeprefix("eval_"): value for key, value in results.items()}, None
    else:
        raise ValueError(f"{folder}: there is no results.json (eomt train) or metrics.json (eomt evaluate --output)")
    results = {}
    for metric in row.metrics:
        value = found.get(METRIC_KEYS.get(metric))
        if isinstance(value, dict):  # BRAVO's are averaged over its subsets; the paper does not say how
            value = value["arithmetic"]
        elif metric.endswith("out-of-distribution"):
            continue
        if isinstance(value, float | int) and not (metric.endswith("in-distribution") and dataset == "bravo"):
            results[metric] = 100 * value
    row.run |= results
    if row.model is None and "gflops_per_image" in found:  # of token merging: by the tokens really left
        row.gflops = found["gflops_per_image"]
    if not results:
        raise ValueError(f"{folder}: its results have none of {', '.join(row.metrics)}")
    config = next((folder / name for name in ("config.json", "model/config.json") if (folder / name).is_file()), None)
    if config is not None and isinstance(row.model, Candidate):
        other = _differences(AutoConfig.from_pretrained(config.parent), row.model.config)
        row.notes += [f"the run: {', '.join(other)}"] if other else []


def _differences(run, printed) -> list[str]:
    """What a run's configuration has otherwise than the paper's row."""
    fields = ("model_type", "hidden_size", "num_hidden_layers", "image_size", "num_labels", "num_queries", "num_blocks")
    return [
        f"{name} {getattr(run, name, None)}, not {getattr(printed, name)}"
        for name in fields
        if getattr(run, name, None) != getattr(printed, name)
    ]


def _count(row: Row, counted: dict[str, tuple]) -> None:
    if row.model is None:
        return
    key = _key(row)
    if key not in counted:
        try:
            counted[key] = row.model.count()
        except ValueError as reason:
            counted[key] = (None, None)
            row.notes.append(str(reason))
    row.parameters, flops = counted[key]
    row.gflops = None if flops is None else row.inputs * flops / 1e9
    if known := why_deviates(row):
        row.notes.append(known)


def _measure(row: Row, device: torch.device, args, measured: dict[str, tuple]) -> None:
    """Latency of one image, all its windows, and the memory it takes, with random weights."""
    if row.model is None or row.parameters is None:  # no implementation, or a package of it is missing
        return
    key = _key(row)
    if key not in measured:
        try:
            model = row.model.load(device, torch.float32)
            inputs = row.model.inputs(round(row.inputs), device)

            def run():
                with torch.inference_mode():
                    model(**inputs)

            seconds = measure_seconds(run, device, args.warm_up, args.repeats)["median"]
            measured[key] = (1e3 * seconds, peak_bytes(run, model, device))
        except RuntimeError as error:  # a model that does not fit leaves the others their turn
            print(f"eomt reproduce: row {row.number}: {str(error).splitlines()[0]}", file=sys.stderr)
            measured[key] = (None, None)
    row.latency_ms, row.peak_memory_bytes = measured[key]


def _key(row: Row) -> str:
    model = row.model
    return (
        f"{row.inputs} {model.label} {model.config.to_json_string()}" if isinstance(model, Candidate) else repr(model)
    )


def table(rows: list[Row]) -> str:
    """Aligned text: printed figures, ours beside them, and marks where a count is another."""

    def pair(printed, found, write=lambda value: f"{value:.0f}") -> str:
        if printed is None and found is None:
            return "–"
        mark = DEVIATES if deviates(found, printed) else ""
        return f"{'–' if printed is None else f'{printed:g}'} | {'–' if found is None else write(found)}{mark}"

    columns = {
        "": lambda row: str(row.number),
        "method": lambda row: row.printed.method,
        "backbone": lambda row: f"{row.printed.backbone} {row.printed.pretraining}",
        "data": lambda row: f"{row.printed.dataset} {row.printed.image_size}",
        "params M": lambda row: pair(
            row.printed.parameters, row.parameters and row.parameters / 1e6, lambda value: f"{value:.2f}"
        ),
        "GFLOPs": lambda row: pair(row.printed.gflops, row.gflops, lambda value: f"{value:.2f}"),
        "FPS": lambda row: "–" if row.printed.fps is None else f"{row.printed.fps:g}",
        "ms here": lambda row: "–" if row.latency_ms is None else f"{row.latency_ms:.0f}",
        "GiB here": lambda row: "–" if row.peak_memory_bytes is None else f"{row.peak_memory_bytes / 2**30:.2f}",
        "result": lambda row: ", ".join(
            f"{metric} {value:.1f}" + (f" | {row.run[metric]:.1f}" if metric in row.run else "")
            for metric, value in row.metrics.items()
        ),
    }
    if not any(row.latency_ms for row in rows):
        columns = {name: write for name, write in columns.items() if not name.endswith(" here")}
    text = text_table([list(columns), *([write(row) for write in columns.values()] for row in rows)])
    legend = "printed | here"
    if DEVIATES in text:
        legend += f"; {DEVIATES}: our count is not the printed figure"
    return "\n".join([text, legend, *(f"{row.number}: {note}" for row in rows for note in row.notes)])


def as_json(row: Row) -> dict:
    printed = row.printed
    counts = {
        "parameters": (row.parameters and row.parameters / 1e6, printed.parameters),
        "gflops": (row.gflops, printed.gflops),
    }
    here = {"parameters": row.parameters, "gflops": row.gflops, "inputs_per_image": row.inputs}
    here |= {"latency_ms": row.latency_ms, "peak_memory_bytes": row.peak_memory_bytes, "metrics": row.run or None}
    return {
        "row": row.number,
        **{name: getattr(printed, name) for name in ("method", "backbone", "pretraining", "dataset", "image_size")},
        "notes": row.notes,
        "printed": {name: getattr(printed, name) for name in ("parameters", "gflops", "fps")}
        | {"metrics": row.metrics},
        "here": here,
        "deviates": [name for name, (found, said) in counts.items() if deviates(found, said)],
    }


def _plot(rows: list[Row], path: Path, device: torch.device | None) -> None:
    """Figure 1: PQ against speed, the paper's on an H100 or, measured, this machine's; a run's PQ where there is."""
    points = []
    for row in rows:
        if row.printed.method not in ("EoMT", "ViT-Adapter + Mask2Former"):
            continue
        speed = row.printed.fps if device is None else row.latency_ms and 1e3 / row.latency_ms
        if speed:
            quality = row.run.get("PQ", row.metrics["PQ"])
            point = {"point": row.printed.backbone, "family": row.printed.method, "images_per_second": speed}
            points.append(point | {"quality": quality, "parameters": row.parameters})
    name = "H100, as printed" if device is None else device_name(device)
    plot_quality_and_speed(points, path, "PQ on COCO in %", name)
