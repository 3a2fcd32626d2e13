"""Time and memory of a call."""

import time
from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile


def seconds(run: Callable, repeats: int) -> float:
    """Shortest of `repeats` runs: on a shared machine the others measure the neighbours."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best


def peak_bytes(run: Callable) -> int:
    """Bytes of CPU tensors that a call holds at once at most, beyond those alive before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    alive = peak = 0
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak
