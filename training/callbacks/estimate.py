"""What a run will take, once its first steps are done."""

import statistics
import sys
import time

import torch
from transformers import TrainerCallback

FIRST, STEPS = 1, 5  # the first step allocates and compiles


def peak_memory() -> int:
    """Most bytes that this process has held: of the GPU's memory where it trains there, else of the computer's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if sys.platform == "win32":
        import psutil  # a dependency of Accelerate

        return psutil.Process().memory_info().peak_wset
    import resource  # not available on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def describe(seconds: float, steps: int, memory: int) -> str:
    """Seconds a step, steps that are left and bytes → one line."""
    minutes = seconds * steps / 60
    left = f"{max(1, round(minutes))} min" if minutes < 120 else f"{minutes / 60:.1f} hours"
    used = f"{memory / 2**30:.1f} GiB so far"
    return f"estimate   {seconds:.2g} s a step, {left} for {steps} more without evaluations; {used}"


class EstimateCallback(TrainerCallback):
    """Prints seconds a step, the time that is left and the memory after the first six steps of a run."""

    def __init__(self):
        self.seconds = []

    def on_step_begin(self, args, state, control, **kwargs):
        self.started = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        if len(self.seconds) > FIRST + STEPS:
            return
        self.seconds.append(time.perf_counter() - self.started)
        if len(self.seconds) == FIRST + STEPS and state.is_world_process_zero:
            left = state.max_steps - state.global_step
            print(describe(statistics.median(self.seconds[FIRST:]), left, peak_memory()), flush=True)
            self.seconds.append(0.0)  # once
