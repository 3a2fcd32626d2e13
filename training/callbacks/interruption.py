"""Ctrl-C and SIGTERM (a preempted job): finish the step, save a checkpoint, then stop. A second one stops at once."""

import signal
import threading
from contextlib import contextmanager

import torch
from transformers import TrainerCallback

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class InterruptionCallback(TrainerCallback):
    """Stops at the end of the step in which any process was signalled, with a checkpoint."""

    def __init__(self, accelerator):
        self.accelerator = accelerator
        self.signalled = False

    def on_step_end(self, args, state, control, **kwargs):
        if self.accelerator.num_processes > 1:  # all must stop at the same step
            flag = torch.tensor(float(self.signalled), device=self.accelerator.device)
            self.signalled = bool(self.accelerator.reduce(flag, reduction="sum") > 0)
        if self.signalled:
            control.should_save = control.should_training_stop = True

    @contextmanager
    def listening(self):
        """Catch the signals while training; afterwards raise KeyboardInterrupt if one came."""
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may install handlers
            return
        self.signalled = False

        def note(number, frame):
            if self.signalled:
                raise KeyboardInterrupt
            self.signalled = True

        heeded = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]  # nohup, a script's `&`
        previous = {number: signal.signal(number, note) for number in heeded}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        if self.signalled:
            raise KeyboardInterrupt
