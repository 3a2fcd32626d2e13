"""Data sets around a data set: workers that survive an interruption, and augmentation that a resumed run repeats."""

import os
import signal

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info


def leave_group() -> None:
    """In a data loader's worker: leave the run's process group, which a terminal's Ctrl-C and `timeout` signal as a
    whole. A worker that dies of it would take the main process with it in the middle of a step."""
    if get_worker_info() is not None and hasattr(os, "setpgid") and os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.SIG_IGN)


class SignalSafeDataset(Dataset):
    """A data set whose workers ignore interruptions; the main process handles them."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int):
        leave_group()
        return self.dataset[index]


class RepeatableDataset(SignalSafeDataset):
    """A map-style data set; each sample's torch random numbers are seeded by (seed, epoch, index).

    How many were drawn before does not matter, so neither the number of workers or processes nor an interruption
    changes a sample.
    """

    def __init__(self, dataset, seed: int):
        super().__init__(dataset)
        self.seed = seed
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers that outlive an epoch see the next

    def set_epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def __getitem__(self, index: int):
        words = np.random.SeedSequence([self.seed, int(self._epoch), int(index)]).generate_state(1, np.uint64)
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(int(words[0]))
            return super().__getitem__(index)
