"""Training on a stream: an `IterableDataset` of `datasets`, split over processes and workers, resumed where it stopped.

Each worker of each process reads an equal number of shards. If the shards cannot be divided equally, each worker reads
the complete stream and keeps its part of the images. Workers repeat their part, so none waits for another at the end.
"""

import os
from collections.abc import Callable, Iterator

import torch
from datasets import IterableDataset
from datasets.distributed import split_dataset_by_node
from torch.utils import data
from transformers.utils import logging

from .samples import exit_flag, leave_group, seeded

logger = logging.get_logger(__name__)


class StreamedBatches(data.IterableDataset):
    """One pass over a worker's part of the stream. Yields (worker, place after the batch, batch).

    A place is {"state": `state_dict` of the data set, "count": batches of this pass}. Torch's random numbers are seeded
    for each batch by (seed, process and worker, pass, count): a resumed run has the samples of an uninterrupted one.
    """

    def __init__(
        self,
        dataset: IterableDataset,
        collator: Callable,
        *,
        batch_size: int,
        drop_last: bool = False,
        seed: int = 0,
        process: int = 0,
        processes: int = 1,
    ):
        self.dataset, self.collator = dataset, collator
        self.batch_size, self.drop_last, self.seed = batch_size, drop_last, seed
        self.process, self.processes = process, processes
        self.epoch = 0
        self.places: dict[int, dict] = {}  # {worker: place to start at}
        self._main_exits = exit_flag(os.getpid())

    def __iter__(self) -> Iterator[tuple[int, dict, dict]]:
        leave_group(self._main_exits)
        info = data.get_worker_info()
        worker, workers = (info.id, info.num_workers) if info is not None else (0, 1)
        rank = self.process * workers + worker
        part = split_dataset_by_node(self.dataset, rank, self.processes * workers)
        part.set_epoch(self.epoch)
        count = 0
        if worker in self.places:
            part.load_state_dict(self.places[worker]["state"])
            count = self.places[worker]["count"]
        # iter(part) would split the part by workers again
        batches = part.iter(self.batch_size, drop_last_batch=self.drop_last)
        while True:
            with seeded(self.seed, rank, self.epoch, count):
                columns = next(batches, None)
                if columns is None:
                    return
                batch = self.collator([dict(zip(columns, values)) for values in zip(*columns.values())])
            count += 1
            yield worker, {"state": part.state_dict(), "count": count}, batch


class StreamLoader:
    """The batches of one process, without end.

    Workers take turns. `state_dict` has their places before the current turn, and the number of batches in this turn. A
    resumed run reads the batches of this turn again, at most one per worker, and skips them.

    Args:
        batches: one pass over the stream.
        options: options of `torch.utils.data.DataLoader`, such as num_workers and pin_memory.

    Raises:
        ValueError: when a pass has no batch.
    """

    def __init__(self, batches: StreamedBatches, **options):
        self.batches = batches
        generator = torch.Generator()  # a new pass draws no number from the generator of the model
        self.loader = data.DataLoader(batches, batch_size=None, collate_fn=_unchanged, generator=generator, **options)
        self.split = [batches.processes, self.loader.num_workers]
        self.turn = 0  # batches since `batches.places`
        shards, parts = batches.dataset.num_shards, batches.processes * max(1, self.loader.num_workers)
        if shards % parts:
            logger.warning(f"{shards} shards cannot be divided among {parts} workers: each reads the complete stream")

    def __iter__(self) -> Iterator[dict]:
        while True:
            latest = dict(self.batches.places)  # {worker: place after its last batch}
            last_worker = -1
            to_skip = self.turn  # the batches of the turn in which the resumed run stopped
            self.turn = 0
            for worker, place, batch in self.loader:
                if worker <= last_worker:  # a new turn
                    self.batches.places = dict(latest)
                    self.turn = 0
                latest[worker] = place
                last_worker = worker
                self.turn += 1
                if to_skip:
                    to_skip -= 1
                else:
                    yield batch
            if not latest:
                raise ValueError("the training stream has no batch; it needs at least one image, or one full batch")
            self.batches.epoch += 1
            self.batches.places = {}
            self.turn = 0

    def state_dict(self) -> dict:
        return {"split": self.split, "epoch": self.batches.epoch, "places": self.batches.places, "turn": self.turn}

    def load_state_dict(self, state: dict) -> None:
        """Start at a saved place. Raises `ValueError` for another number of processes or workers."""
        if state["split"] != self.split:
            raise ValueError(
                f"the stream of the checkpoint was split over {state['split'][0]} processes of {state['split'][1]} "
                f"workers, not {self.split[0]} of {self.split[1]}; resume with the same numbers"
            )
        self.batches.epoch, self.batches.places, self.turn = state["epoch"], state["places"], state["turn"]


def _unchanged(item):
    return item
