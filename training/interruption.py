"""Ctrl-C and SIGTERM (a preempted job): finish the step, save a checkpoint, then stop. A second one stops at once."""

import os
import signal
import threading
from contextlib import contextmanager

import torch
from torch.utils.data import Dataset, get_worker_info
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


def leave_group() -> None:
    """In a data loader's worker: leave the run's process group, which a terminal's Ctrl-C and `timeout` signal as a
    whole. A worker that dies of it would take the main process with it in the middle of a step."""
    if get_worker_info() is not None and hasattr(os, "setpgid") and os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.SIG_IGN)


class Undisturbed(Dataset):
    """A data set whose workers leave the interruption to the main process."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int):
        leave_group()
        return self.dataset[index]
