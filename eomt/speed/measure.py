"""Time and memory of a forward pass, as in the paper (Section 4.1): batch 1, warmed up, synchronized."""

import platform
import re
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile


def device_name(device: torch.device) -> str:
    """The manufacturer's name of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu_name()} (CPU)" if device.type == "cpu" else device.type.upper()


def cpu_name() -> str:
    file = Path("/proc/cpuinfo")  # on Linux Python does not know the name
    found = re.search(r"model name\s*:\s*(.+)", file.read_text()) if file.exists() else None
    if found:
        return found[1].strip()
    return platform.processor() or platform.machine()


def synchronize(device: torch.device) -> None:
    """Wait for all work on the device; a no-op on the CPU."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize(device)


def measure_seconds(run: Callable, device: torch.device, warm_up: int, repeats: int) -> dict[str, float]:
    """Seconds {"median", "p10", "p90"} of `repeats` runs, after `warm_up` runs for compilation and caches."""
    for _ in range(warm_up):
        run()
    times = []
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        run()
        synchronize(device)
        times.append(time.perf_counter() - start)
    times.sort()
    last = len(times) - 1
    return {"median": statistics.median(times), "p10": times[round(0.1 * last)], "p90": times[round(0.9 * last)]}


def peak_bytes(run: Callable, model: nn.Module, device: torch.device) -> int | None:
    """Peak bytes of tensors during `run`, weights included. None if unknown: engines allocate by themselves."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        run()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    if device.type != "cpu" or not isinstance(model, nn.Module):
        return None
    weights = [*model.parameters(), *model.buffers()]
    return extra_cpu_bytes(run) + sum(tensor.numel() * tensor.element_size() for tensor in weights)


def extra_cpu_bytes(run: Callable) -> int:
    """Peak bytes of the CPU tensors that a call allocates."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    alive = peak = 0
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


def text_table(rows: Sequence[Sequence[str]], align_right: bool = False) -> str:
    """Align rows of cells, the header first, with a line under the header.

    Args:
        align_right: align all columns but the first to the right.
    """
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) if align_right else cell.ljust(width) for cell, width in zip(row, widths)]
        cells[0] = row[0].ljust(widths[0])
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
