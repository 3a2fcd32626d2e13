"""Augmentation that a resumed run repeats: a sample's random numbers follow from seed, epoch and index alone.

Not from how many were drawn before, so neither the number of workers and processes nor an interruption changes them.
"""

import numpy as np
import torch

from .interruption import Undisturbed


class RepeatableDataset(Undisturbed):
    """Any map-style data set, its transform's torch random numbers seeded by (seed, epoch, index) for each sample."""

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
