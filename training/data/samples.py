"""Transforms of rows into samples: `dataset.with_transform(TrainTransform(…))` and `EvaluationTransform`.

H, W image · S_h, S_w crop · n segments
"""

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from multiprocessing.util import Finalize

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch.utils.data import Dataset, get_worker_info

from ...configuration import as_pair
from ...configuration.labels import VOID, LabelSpace
from ...image_processing.images import distinct_values, look_up
from ...image_processing.rle import encode_masks, rle_areas
from ..augmentation import Geometry, color_jitter, ids_to_positions, positions_to_masks
from .ade20k import panoptic_map
from .coco import BACKGROUND
from .files import naming
from .images import read_classes, read_colors, read_image, read_map
from .polygons import to_rle
from .voc import object_map

TRIES = 10  # crops drawn for an image until one has a segment; the authors draw without limit
MAX_MASK_BYTES = 1 << 31  # of the masks of one crop


# --- decoding a row ---------------------------------------------------------------------------------------------------


@dataclass
class Sample:
    """One decoded row, with its segments as a map of ids, or as RLEs of instances, which may overlap."""

    image: torch.Tensor  # uint8 (3, H, W)
    segments: list[dict] = field(default_factory=list)  # {"id", "label_id", "iscrowd", …}
    ids: np.ndarray | None = None  # int32 (H, W): segment id (semantic: label) of each pixel, VOID if unlabeled
    rles: list[dict] | None = None  # one per segment


def decode(row: dict, space: LabelSpace, num_channels: int = 3) -> Sample:
    """Read the files of a row.

    Raises:
        ValueError: with the file name, for unreadable files, sizes that disagree, or unknown ids.
    """
    with naming(row["file_name"]):
        read, to_sample = LAYOUTS[row["layout"]]
        pixels = read(row["annotation"]) if row["annotation"] else None
        sizes = []  # of the annotation; they decide the orientation of the image
        if row["size"]:
            sizes.append(tuple(row["size"]))
        if pixels is not None:
            sizes.append(pixels.shape)
        image = read_image(row["image"], sizes[0] if sizes else None, num_channels)
        for size in sizes:
            require_size(size, image, "its annotation")
        if pixels is None:
            pixels = np.zeros(image.shape[1:], np.int32)  # an image without annotation
        return to_sample(row, image, pixels, space)


def require_size(size, image: torch.Tensor, what: str) -> None:
    if tuple(size) != tuple(image.shape[1:]):
        sizes = f"{size[0]}×{size[1]}, the image {image.shape[1]}×{image.shape[2]}"
        raise ValueError(f"{what} is {sizes} (height × width); they must agree")


def _semantic(row: dict, image: torch.Tensor, values: np.ndarray, space: LabelSpace) -> Sample:
    labels = to_labels(values, space)
    if row["score_floor"]:
        confidence = read_map(row["second_png"])  # [H, W], 0 … 65535
        require_size(confidence.shape, image, "its confidence")
        labels[confidence < row["score_floor"] * 65535] = VOID
    return _classes(image, labels)


def _panoptic(row: dict, image: torch.Tensor, ids: np.ndarray, space: LabelSpace) -> Sample:
    listed = {s["id"] for s in row["segments"]} | {0}
    unlisted = [i for i in distinct_values(ids) if i not in listed]
    if unlisted:
        raise ValueError(f"its panoptic PNG has id {unlisted[0]}, which is not in segments_info")
    ids[ids == 0] = VOID
    return Sample(image, _segments(row), ids=ids)


def _panoptic_as_semantic(row: dict, image: torch.Tensor, ids: np.ndarray, space: LabelSpace) -> Sample:
    sample = _panoptic(row, image, ids, space)
    labels = np.array([*(s["label_id"] for s in sample.segments), VOID], np.int32)
    positions = look_up(sample.ids, [s["id"] for s in sample.segments])  # −1, the last label, if void
    return _classes(image, labels[positions])


def _panoptic_as_instance(row: dict, image: torch.Tensor, ids: np.ndarray, space: LabelSpace) -> Sample:
    segments = _segments(row)  # things only; the PNG also has stuff
    return Sample(image, segments, rles=encode_masks(ids == s["id"] for s in segments))


def _ade20k_panoptic(row: dict, image: torch.Tensor, classes: np.ndarray, space: LabelSpace) -> Sample:
    instances = read_map(row["second_png"])
    require_size(instances.shape, image, "its instance PNG")
    ids, segments = panoptic_map(classes, instances, space)
    return Sample(image, segments, ids=ids)


def _voc_instance(row: dict, image: torch.Tensor, classes: np.ndarray, space: LabelSpace) -> Sample:
    read, _ = LAYOUTS[row["layout"]]
    objects = read(row["second_png"])
    require_size(objects.shape, image, "its object PNG")
    ids, segments = object_map(objects, to_labels(classes, space), read is read_colors)
    return Sample(image, segments, rles=encode_masks(ids == s["id"] for s in segments))


def _instance(row: dict, image: torch.Tensor, nothing: np.ndarray, space: LabelSpace) -> Sample:
    segments = _segments(row)
    rles = []
    for segment in segments:
        with naming(f"annotation {segment['id']}"):
            rle = to_rle(json.loads(segment.pop("shape")), *image.shape[1:])
            require_size(rle["size"], image, "its mask")
            rles.append(rle)
    return Sample(image, segments, rles=rles)


def _instance_as_semantic(row: dict, image: torch.Tensor, nothing: np.ndarray, space: LabelSpace) -> Sample:
    """Smaller objects cover larger ones, over the background."""
    sample = _instance(row, image, nothing, space)
    labels = np.full(image.shape[1:], space.label2id[BACKGROUND], np.int32)
    for i in np.argsort(-rle_areas(sample.rles), kind="stable"):
        labels[coco_mask.decode(sample.rles[i]).astype(bool)] = sample.segments[i]["label_id"]
    return _classes(image, labels)


LAYOUTS: dict[str, tuple[Callable, Callable]] = {
    "semantic": (read_classes, _semantic),
    "semantic_colors": (read_colors, _semantic),
    "panoptic": (read_map, _panoptic),
    "panoptic_as_semantic": (read_map, _panoptic_as_semantic),
    "panoptic_as_instance": (read_map, _panoptic_as_instance),
    "ade20k_panoptic": (read_map, _ade20k_panoptic),
    "voc_instance": (read_classes, _voc_instance),
    "voc_instance_colors": (read_colors, _voc_instance),
    "instance": (read_map, _instance),
    "instance_as_semantic": (read_map, _instance_as_semantic),
}
"""{layout of a row: (reader of its label PNG, function that makes a sample)}"""


def _segments(row: dict) -> list[dict]:
    return [dict(segment) for segment in row["segments"]]


def _classes(image: torch.Tensor, labels: np.ndarray) -> Sample:
    """A sample with one segment per class of a label map (H, W), VOID if unlabeled."""
    segments = [{"id": i, "label_id": i, "iscrowd": 0} for i in distinct_values(labels) if i != VOID]
    return Sample(image, segments, ids=labels)


def to_labels(values: np.ndarray, space: LabelSpace) -> np.ndarray:
    """Labels of dataset ids, int32 (H, W), VOID if unlabeled. Raises `ValueError` for an id that is no class."""
    label_of = dict.fromkeys((*space.ignored_ids, space.ignore_index), VOID) | dict(space.dataset_id_to_label)
    positions = look_up(values, list(label_of))
    unknown = positions < 0
    if unknown.any():
        raise ValueError(
            f"its label image has the value {values[unknown].min()}, which is neither a class nor ignored; correct it, "
            "add it to the class names or the ignored ids, or train these classes with class_head new"
        )
    return np.array(list(label_of.values()), np.int32)[positions]


# --- samples for training and evaluation ------------------------------------------------------------------------------


class _Transform:
    """A transform of rows, called with a dict of lists by `datasets`. Subclasses define `row`."""

    def __init__(self, label_space: LabelSpace, *, task: str, num_channels: int = 3):
        self.label_space, self.task, self.num_channels = label_space, task, num_channels

    def __call__(self, rows: dict[str, list]) -> dict[str, list]:
        samples = [self.row(dict(zip(rows, values))) for values in zip(*rows.values())]
        return {name: [sample[name] for sample in samples] for name in samples[0]} if samples else {}


class TrainTransform(_Transform):
    """Augmented crops: "pixel_values" uint8 (3, S_h, S_w), "mask_labels" bool (n, S_h, S_w), "class_labels" (n,).

    A crop without segments is drawn again, up to 10 crops in all. n is 0 after that, and for images without segments.

    Args:
        label_space: label space of the rows, from `load_data`.
        task: "panoptic", "instance" or "semantic".
        size: side S of the crop, or (S_h, S_w), in pixels.
        scale_range: range of the random scale: (0.1, 2.0) for COCO and ADE20K panoptic, (0.5, 2.0) for semantic.
        color_jitter: jitter colors (the authors' ADE20K and Cityscapes recipes). Applies to RGB only.
        augment: whether to augment. Otherwise the image is resized to fit the crop and padded.
        num_channels: channels of the images.
        after: further augmentation of the crop with the interface of albumentations: called with an image, uint8
            (S_h, S_w, 3), and masks, a list of n uint8 (S_h, S_w); returns a dict of both. Segments without pixels are
            dropped afterwards. For repeatable runs, it draws random numbers from torch or has `set_random_seed`, which
            is called first, for each sample. Example:
            albumentations.Compose([albumentations.RandomRotate90(), albumentations.GaussNoise()])

    Raises:
        ValueError: for unreadable data, with the file name, or a crop with more than 2 GiB of masks.
    """

    def __init__(
        self,
        label_space: LabelSpace,
        *,
        task: str,
        size: int | tuple[int, int],
        scale_range: tuple[float, float] = (0.1, 2.0),
        color_jitter: bool = False,
        augment: bool = True,
        num_channels: int = 3,
        after: Callable[..., dict] | None = None,
    ):
        super().__init__(label_space, task=task, num_channels=num_channels)
        self.size = as_pair(size)
        low, high = scale_range
        if not 0 < low <= high:
            raise ValueError(f"scale_range is {low},{high}; give LOW,HIGH, two positive numbers")
        self.scale_range = (low, high)
        self.color_jitter = color_jitter and num_channels == 3
        self.augment = augment
        self.after = after

    def row(self, row: dict) -> dict:
        sample = drop_crowds(decode(row, self.label_space, self.num_channels))
        positions = None
        if sample.rles is None:  # [H, W] index of each pixel's segment
            positions = ids_to_positions(sample.ids, [s["id"] for s in sample.segments])
        with naming(row["file_name"]):
            for _ in range(TRIES if self.augment and sample.segments else 1):
                image, geometry = self._draw(sample.image)
                if positions is None:
                    masks, kept = self._masks_of_rles(sample.rles, geometry)
                else:
                    self._require_room(len(sample.segments))
                    masks, kept = positions_to_masks(geometry.target(positions, 0), len(sample.segments))
                if len(kept):
                    break
        labels = torch.tensor([s["label_id"] for s in sample.segments], dtype=torch.int64)[kept]
        pixels = geometry.image(image)
        if self.after is not None:
            pixels, masks = self._apply_after(pixels, masks)
            kept = masks.flatten(1).any(1)
            masks, labels = masks[kept], labels[kept]
        crop = {"pixel_values": pixels, "mask_labels": masks, "class_labels": labels}
        if self.num_channels != 3:
            crop["unnormalized"] = pixels.is_floating_point() and self.after is None  # of more than 8 bits
        return crop | {"file_name": row["file_name"]}

    def _apply_after(self, pixels: torch.Tensor, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if hasattr(self.after, "set_random_seed"):
            self.after.set_random_seed(int(torch.randint(1 << 31, ())))
        image = pixels.permute(1, 2, 0).contiguous().numpy()
        found = self.after(image=image, masks=list(masks.to(torch.uint8).numpy()))
        pixels = torch.from_numpy(np.ascontiguousarray(np.moveaxis(found["image"], -1, 0)))
        if not len(masks):
            return pixels, masks.new_zeros(0, *pixels.shape[1:])
        return pixels, torch.from_numpy(np.stack(found["masks"])).bool()

    def _draw(self, image: torch.Tensor) -> tuple[torch.Tensor, Geometry]:
        size = tuple(image.shape[1:])
        if not self.augment:
            return image, Geometry.fit(size, self.size)
        jittered = color_jitter(image) if self.color_jitter else image
        return jittered, Geometry.draw(size, self.size, self.scale_range)

    def _masks_of_rles(self, rles: list[dict], geometry: Geometry) -> tuple[torch.Tensor, torch.Tensor]:
        """Masks bool (m, S_h, S_w) of the m RLEs with pixels in the crop, and their indices (m,).

        RLEs are decoded one at a time: 60 full-size masks of a 12-megapixel photo take 0.7 GB.
        """
        masks = [torch.zeros(0, *self.size, dtype=torch.bool)]
        kept = []
        for i, rle in enumerate(rles):
            pixels = torch.from_numpy(coco_mask.decode(rle))  # uint8 (H, W), in Fortran order
            mask = geometry.target(pixels, 0).bool()
            if mask.any():
                masks.append(mask[None])
                kept.append(i)
                self._require_room(len(kept))
        return torch.cat(masks), torch.tensor(kept, dtype=torch.int64)

    def _require_room(self, count: int) -> None:
        most = MAX_MASK_BYTES // (self.size[0] * self.size[1])
        if count > most:
            raise ValueError(
                f"the masks of a crop of {self.size[0]} × {self.size[1]} with more than {most} segments exceed 2 GiB; "
                "split the image into smaller ones"
            )


class EvaluationTransform(_Transform):
    """Images of their own size, uint8 (3, H, W), with the ground truth of the task's metric as "reference".

    The package docstring describes the reference. Crowds are kept. `label_space`, `task` and
    `num_channels` are those of `TrainTransform`.
    """

    def row(self, row: dict) -> dict:
        sample = decode(row, self.label_space, self.num_channels)
        reference = {"panoptic": self._panoptic, "instance": self._instance, "semantic": self._semantic}[self.task]
        common = {"image_id": row["image_id"], "file_name": row["file_name"]}
        return {"image": sample.image, "reference": reference(sample), **common}

    def _panoptic(self, sample: Sample) -> dict:
        info = [{name: s[name] for name in ("id", "label_id", "iscrowd")} for s in sample.segments]
        return {"segmentation": sample.ids, "segments_info": info}

    def _semantic(self, sample: Sample) -> np.ndarray:
        return np.where(sample.ids == VOID, self.label_space.ignore_index, sample.ids).astype(np.int32)

    def _instance(self, sample: Sample) -> dict:
        counted = rle_areas(sample.rles)
        area = [s["area"] if s["area"] >= 0 else float(pixels) for s, pixels in zip(sample.segments, counted)]
        return {
            "masks": sample.rles,
            "labels": np.array([s["label_id"] for s in sample.segments], np.int64),
            "iscrowd": np.array([s["iscrowd"] for s in sample.segments], np.int64),
            "area": np.array(area, np.float64),
        }


def drop_crowds(sample: Sample) -> Sample:
    """The sample without its crowd segments. Their pixels are background, as in the authors' code."""
    keep = [i for i, s in enumerate(sample.segments) if not s["iscrowd"]]
    sample.segments = [sample.segments[i] for i in keep]
    if sample.rles is not None:
        sample.rles = [sample.rles[i] for i in keep]
    return sample


# --- wrappers for data loaders ----------------------------------------------------------------------------------------


@cache
def exit_flag(process: int) -> torch.Tensor:
    """A bool in shared memory. It is True once this process, given by its number, exits."""
    flag = torch.zeros((), dtype=torch.bool).share_memory_()
    Finalize(None, flag.fill_, (True,), exitpriority=0)  # `atexit` does not know processes of multiprocessing
    return flag


def leave_group(main_exits: torch.Tensor) -> None:
    """Leave the process group of the run and ignore its signals, in the worker of a data loader.

    Ctrl-C and `timeout` signal all processes of the group, Slurm those of the job. A worker that dies of the signal
    would end the main process in the middle of a step. A main process that exits terminates its workers by SIGTERM and
    waits for them, so they obey it then.

    Args:
        main_exits: `exit_flag` of the main process.
    """

    def terminate(number, frame):
        if main_exits:
            os._exit(0)

    if get_worker_info() is not None and hasattr(os, "setpgid") and os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, terminate)


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Seed torch's random numbers inside the block by these numbers."""
    words = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(int(words[0]))
        yield


class SignalSafeDataset(Dataset):
    """A data set that is read by workers which ignore interruptions. The main process handles them."""

    def __init__(self, dataset):
        self.dataset = dataset
        self._main_exits = exit_flag(os.getpid())

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int):
        leave_group(self._main_exits)
        return self.dataset[index]


class RepeatableDataset(SignalSafeDataset):
    """A map-style data set that seeds torch's random numbers of each sample by (seed, epoch, index).

    A sample is the same for any number of workers and processes, and after an interruption.
    """

    def __init__(self, dataset, seed: int):
        super().__init__(dataset)
        self.seed = seed
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # persistent workers see the next epoch

    def set_epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def __getitem__(self, index: int):
        with seeded(self.seed, int(self._epoch), int(index)):
            return super().__getitem__(index)
