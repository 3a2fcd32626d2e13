"""Time and memory of a call."""

import statistics
import time
from collections.abc import Callable


def seconds(run: Callable, repeats: int) -> float:
    """Shortest of `repeats` runs: on a shared machine the others measure the neighbors."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best


def paired(ours: Callable, theirs: Callable, repeats: int) -> tuple[float, float, float]:
    """Median seconds of both, and the median of the ratios theirs / ours.

    They run in turn, so that both see the same machine; one uncounted run each comes first.
    """
    ours(), theirs()
    pairs = [(seconds(ours, 1), seconds(theirs, 1)) for _ in range(repeats)]
    ratios = [slow / fast for fast, slow in pairs]
    return statistics.median(p[0] for p in pairs), statistics.median(p[1] for p in pairs), statistics.median(ratios)
