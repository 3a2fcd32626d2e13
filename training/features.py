"""Cached features of a frozen encoder (`cache_features`). They are computed once; training does not run the encoder.

N images · C fixed crops per image · K levels of the encoder · T tokens · D width

Files of the folder:
    levels.npy     features, fp16 (N, C, K, T, D), memory-mapped
    crops.npy      checksums of the pixels of each crop, which are compared with every sample
    encoder.json   fingerprint of the encoder, its levels and its normalization; written last

A folder without `encoder.json` is incomplete and computed again. A run waits for another one that computes the folder.
"""

import shutil
import zlib
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers.utils import logging

from ..configuration import as_pair
from ..modeling_eomt import PMTForUniversalSegmentation
from .data.samples import RepeatableDataset
from .files import read_json, write_json

logger = logging.get_logger(__name__)

BATCH = 4  # crops per forward pass of the encoder
NORMALIZATION = ("image_mean", "image_std", "do_rescale", "rescale_factor", "do_normalize")  # of the collator


class CachedFeatures(RepeatableDataset):
    """Training samples with "encoder_levels" (K, T, D), fp16. Epoch e has crop e mod C of each image.

    Raises:
        ValueError: for a sample whose pixels are not those of the cache.
    """

    def __init__(self, dataset, seed: int, crops: int, folder: Path):
        super().__init__(dataset, seed)
        self.crops, self.folder = crops, folder

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch % self.crops)

    def __getitem__(self, index: int) -> dict:
        sample = super().__getitem__(index)
        crop = int(self._epoch)
        checksums = np.load(self.folder / "crops.npy", mmap_mode="r")
        if checksums[index, crop] != checksum(sample):
            raise ValueError(f"{self.folder} holds features of other images or crops; give another cache_features")
        levels = np.load(self.folder / "levels.npy", mmap_mode="r")[index, crop]
        return sample | {"encoder_levels": torch.from_numpy(np.array(levels))}


def checksum(sample: dict) -> int:
    """CRC-32 of the pixels of a sample."""
    return zlib.crc32(sample["pixel_values"].contiguous().numpy())


def cached_features(
    dataset, model: PMTForUniversalSegmentation, collator, folder: Path, seed: int, crops: int
) -> CachedFeatures:
    """The samples of a data set with the features of their crops. Missing features are computed.

    Raises:
        ValueError: for a damaged folder, a folder with features of another encoder, input, data set or number of crops,
            or a full disk.
    """
    config = model.config
    key = {"encoder": model.encoder.digest(), "levels": list(config.interaction_indices)}
    key["patch_size"] = list(as_pair(config.patch_size))
    key |= {name: np.ravel(getattr(collator, name, None)).tolist() for name in NORMALIZATION}
    samples = CachedFeatures(dataset, seed, crops, folder)
    complete = folder / "encoder.json"
    if not complete.exists():
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "lock")  # the system frees it when the process is killed
        try:
            held = lock.acquire(blocking=False)
        except Timeout:
            logger.warning(f"another process computes the features in {folder}; waiting for it")
            held = lock.acquire()
        with held:
            if not complete.exists():  # else written by the other run
                _write(samples, model, collator, key)
    try:
        found, shape = read_json(complete), np.load(folder / "crops.npy", mmap_mode="r").shape
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{folder} is not a complete cache ({error}); give another cache_features") from None
    if found != key:
        raise ValueError(f"{folder} holds features of another encoder or input; give another cache_features")
    if shape != (len(dataset), crops):
        raise ValueError(
            f"{folder} holds features of {shape[0]} images with {shape[1]} crops, not of {len(dataset)} with {crops}; "
            "give another cache_features"
        )
    return samples


@torch.no_grad()
def _write(samples: CachedFeatures, model: PMTForUniversalSegmentation, collator, key: dict) -> None:
    images, crops, indices = len(samples.dataset), samples.crops, key["levels"]
    plain = RepeatableDataset(samples.dataset, samples.seed)
    height, width = plain[0]["pixel_values"].shape[-2:]
    grid = model.patch_grid(torch.empty(1, model.config.num_channels, height, width, device="meta"))
    tokens = grid[0] * grid[1] + model.config.num_prefix_tokens
    shape = (images, crops, len(indices), tokens, model.config.hidden_size)
    folder = samples.folder
    (folder / "levels.npy").unlink(missing_ok=True)  # left by a killed run
    needed, free = 2 * int(np.prod(shape)), shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(
            f"the features need {needed / 1e9:.1f} GB, but {folder} has {free / 1e9:.1f} GB; lower cached_crops, or "
            "leave out cache_features"
        )
    try:
        checksums = _write_levels(folder / "levels.npy", shape, plain, model, collator, indices, grid)
    except BaseException:  # also for Ctrl-C
        (folder / "levels.npy").unlink(missing_ok=True)
        raise
    np.save(folder / "crops.npy", checksums)
    write_json(folder / "encoder.json", key)


def _write_levels(path: Path, shape: tuple, plain: RepeatableDataset, model, collator, indices, grid) -> np.ndarray:
    """Compute and write the features. Returns the checksums (N, C) of the crops."""
    images, crops = shape[:2]
    levels = np.lib.format.open_memmap(path, "w+", np.float16, shape)
    checksums = np.zeros((images, crops), np.uint32)
    with tqdm(total=images * crops, desc="features") as bar:
        for crop in range(crops):
            plain.set_epoch(crop)
            # a generator of its own leaves that of the run unchanged
            loader = DataLoader(plain, BATCH, collate_fn=list, generator=torch.Generator())
            for first, batch in zip(range(0, images, BATCH), loader):
                pixels = collator(batch)["pixel_values"].to(model.device, model.dtype)
                found = torch.stack(model.encoder(pixels, indices, grid), dim=1)  # [B, K, T, D]
                levels[first : first + len(batch), crop] = found.half().cpu().numpy()
                checksums[first : first + len(batch), crop] = [checksum(sample) for sample in batch]
                bar.update(len(batch))
    levels.flush()
    return checksums
