"""Rows → samples, on the fly: `dataset.with_transform(TrainTransform(…))` and `EvaluationTransform`."""

import numpy as np
import torch
from pycocotools import mask as coco_mask

from ...configuration import as_pair
from ...configuration.labels import VOID, LabelSpace
from ...image_processing.rle import rle_areas
from ..augmentation import Geometry, color_jitter, ids_to_positions, positions_to_masks
from .decode import Sample, decode

TRIES = 10  # crops drawn before an image with segments is taken without any; the authors draw without end
MAX_MASK_BYTES = 1 << 31  # of one crop's masks


class _Transform:
    """Rows as `datasets` hands them over (a dict of lists) → a dict of lists, row by row."""

    def __init__(self, label_space: LabelSpace, *, task: str):
        self.label_space, self.task = label_space, task

    def __call__(self, rows: dict[str, list]) -> dict[str, list]:
        samples = [self.row(dict(zip(rows, values))) for values in zip(*rows.values())]
        return {name: [sample[name] for sample in samples] for name in samples[0]} if samples else {}


class TrainTransform(_Transform):
    """Rows → {"pixel_values" uint8 (3, S_h, S_w), "mask_labels" bool (n, S_h, S_w), "class_labels" (n,), "file_name"}.

    size: S or (S_h, S_w). scale_range: (0.1, 2.0) COCO and ADE20K panoptic, (0.5, 2.0) semantic.
    color_jitter: ADE20K and Cityscapes only. augment=False: resize to fit and pad.
    A crop without any segment is drawn again, at most 10 times; then, and where there is nothing, n = 0.
    A crop with so many segments that their masks exceed 2 GiB is a `ValueError`.
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
    ):
        super().__init__(label_space, task=task)
        self.size = as_pair(size)
        if not 0 < scale_range[0] <= scale_range[1]:
            raise ValueError(f"scale_range {tuple(scale_range)} must be two rising positive factors, as (0.1, 2.0)")
        self.scale_range, self.color_jitter, self.augment = tuple(scale_range), color_jitter, augment

    def row(self, row: dict) -> dict:
        sample = drop_crowds(decode(row, self.label_space))
        positions = None  # (H, W): which segment each pixel belongs to
        if sample.rles is None:
            positions = ids_to_positions(sample.ids, [s["id"] for s in sample.segments])
        size = tuple(sample.image.shape[1:])
        for _ in range(TRIES if self.augment and sample.segments else 1):
            image = color_jitter(sample.image) if self.augment and self.color_jitter else sample.image
            geometry = (
                Geometry.draw(size, self.size, self.scale_range) if self.augment else Geometry.fit(size, self.size)
            )
            if sample.rles is None:
                self._require_room(len(sample.segments), row["file_name"])
                masks, kept = positions_to_masks(geometry.target(positions, 0), len(sample.segments))
            else:
                masks, kept = self._masks(sample.rles, geometry, row["file_name"])
            if len(kept):
                break
        labels = torch.tensor([s["label_id"] for s in sample.segments], dtype=torch.int64)[kept]
        return {
            "pixel_values": geometry.image(image),
            "mask_labels": masks,
            "class_labels": labels,
            "file_name": row["file_name"],
        }

    def _masks(self, rles: list[dict], geometry: Geometry, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """RLEs → bool (n, S_h, S_w) and which segments have pixels in the crop.

        Decoded one at a time: 60 full-size masks of a 12-megapixel photo take 0.7 GB.
        """
        masks, kept = [], []
        for i, rle in enumerate(rles):
            pixels = torch.from_numpy(coco_mask.decode(rle))  # uint8 (H, W), in Fortran order
            mask = geometry.target(pixels, 0).bool()
            if not mask.any():
                continue
            masks.append(mask)
            kept.append(i)
            self._require_room(len(masks), name)
        if not masks:
            return torch.zeros(0, *self.size, dtype=torch.bool), torch.zeros(0, dtype=torch.int64)
        return torch.stack(masks), torch.tensor(kept)

    def _require_room(self, count: int, name: str) -> None:
        most = MAX_MASK_BYTES // (self.size[0] * self.size[1])
        if count > most:
            raise ValueError(
                f"{name}: a crop of {self.size[0]} × {self.size[1]} holds more than {most} segments, and their masks "
                "exceed 2 GiB; cut the image into smaller ones"
            )


class EvaluationTransform(_Transform):
    """Rows → {"image" uint8 (3, H, W), "reference", "image_id", "file_name"}; crowds stay, nothing is resized."""

    def row(self, row: dict) -> dict:
        sample = decode(row, self.label_space)
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
    """Training's sample: crowd regions are no segments. Their pixels stay background, as the authors have it."""
    keep = [i for i, s in enumerate(sample.segments) if not s["iscrowd"]]
    sample.segments = [sample.segments[i] for i in keep]
    if sample.rles is not None:
        sample.rles = [sample.rles[i] for i in keep]
    return sample
