"""The inference loop of `eomt predict`, `eomt evaluate`, the trainer and `eomt.segment`.

V model inputs, more than images if windows are cut · S_h, S_w their size

A model is any callable with arguments `pixel_values` and `patch_offsets` and the outputs of EoMT.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from os import PathLike
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as rle
from torch.utils.data import DataLoader, Dataset

from .bands import open_any, to_bands
from .images import to_rgb_tensor

FAILS_ALONE = (ValueError, OSError, RuntimeError, MemoryError)
"""Errors of one image that do not stop the others: unreadable, too large for memory, file name too long, …"""


@dataclass
class Inferred:
    """The result for one image."""

    item: object
    "The entry of `images`."
    size: tuple[int, int]
    "(height, width) of the image and of its segmentation."
    prediction: dict
    "See `predict_image`; on the CPU."
    before_blocks: list[dict] = field(default_factory=list)
    "Intermediate predictions of masked attention, earliest first, if requested."


def open_source(source, channels: int = 3) -> Image.Image | torch.Tensor:
    """A path, PIL image, array or tensor, for RGB also a URL or base64 text → an RGB image or a tensor (C, H, W)."""
    if hasattr(source, "shape"):
        return to_rgb_tensor(source) if channels == 3 else to_bands(source, channels)
    if channels == 3 or isinstance(source, str | PathLike):
        return open_any(source, channels)
    return to_bands(source, channels)


def infer(
    model,
    processor,
    images,
    *,
    task: str | None = None,
    batch_size: int = 1,
    num_workers: int = 0,
    read: Callable = open_source,
    intermediate: bool = False,
    on_error: Callable[[object, str], None] | None = None,
    **rules,
) -> Iterator[Inferred]:
    """Segment images batch by batch, in order.

    Args:
        model: a model in evaluation mode; inputs get its device and dtype.
        images: a sequence or a data set of items.
        task: by default the processor's.
        num_workers: processes for reading and resizing.
        read: function that opens an item as a PIL image or tensor.
        intermediate: also return the intermediate predictions of masked attention, if it is on.
        on_error: function of (item, reason) for an image that cannot be read or segmented. The image is skipped. By
            default the error is raised.
        rules: thresholds and other options of `predict_image`.
    """
    device, dtype = _placed(model)
    loader = DataLoader(
        _Inputs(images, processor, read, on_error is not None),
        batch_size=batch_size,
        num_workers=min(num_workers, len(images)),
        collate_fn=_collate,
        pin_memory=device.type == "cuda",
    )

    def compute(batch: dict):
        """Outputs for a batch, None for an empty one, or the error."""
        if not batch["items"]:
            return None
        pixels = batch["pixel_values"].to(device, dtype, non_blocking=True)  # [V, 3, S_h, S_w]
        try:
            with torch.no_grad():  # not inference_mode: FSDP would keep its tensors in gathered weights
                return model(pixel_values=pixels, patch_offsets=batch["patch_offsets"] or None)
        except FAILS_ALONE as error:  # out of memory, on any device
            if on_error is None:
                raise
            return error

    for batch, outputs in _computed(compute, loader, at_once=getattr(model, "num_requests", 0)):
        for item, reason in batch["failures"]:
            on_error(item, reason)
        if isinstance(outputs, Exception):
            for item in batch["items"]:
                on_error(item, error_line(outputs))
            continue
        offsets, stages = batch["patch_offsets"], [outputs]
        if intermediate:
            stages += [SimpleNamespace(**logits) for logits in outputs.auxiliary_logits or ()]
        for i, (item, size) in enumerate(zip(batch["items"], batch["sizes"])):
            try:
                found = [
                    predict_image(processor, _image_outputs(i, stage, offsets), size, task, **rules) for stage in stages
                ]
            except FAILS_ALONE as error:
                if on_error is None:
                    raise
                on_error(item, error_line(error))
            else:
                yield Inferred(item, size, found[0], found[1:])
                found = None  # results of large images are large


def _computed(compute: Callable, batches: Iterable, at_once: int) -> Iterator[tuple]:
    """Pairs (batch, outputs) in order. `at_once` threads, if any, compute ahead while the caller uses the last pair."""
    if not at_once:
        for batch in batches:
            yield batch, compute(batch)
        return
    pool, waiting = ThreadPoolExecutor(at_once), deque()
    try:
        for batch in batches:
            waiting.append((batch, pool.submit(compute, batch)))
            if len(waiting) > at_once:
                batch, future = waiting.popleft()
                yield batch, future.result()
        while waiting:
            batch, future = waiting.popleft()
            yield batch, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def predict_image(processor, outputs, size: tuple[int, int], task: str | None = None, **rules) -> dict:
    """The prediction for one image at `size` (height, width), on the CPU.

    Args:
        outputs: outputs of the model for this image only.
        task: by default the processor's.
        rules: options of the processor's method, for example `threshold` and `stuff_classes` for panoptic.

    Returns:
        Panoptic: {"segmentation" (H, W), "segments_info"}. Instance: {"size", "masks" (COCO's run-length encoding),
        "labels" (n,), "scores" (n,)}, the best 100. Semantic: {"segmentation" (H, W)}, with `confidence=True` also
        "confidence" (H, W).

    Raises:
        ValueError: for a task with other inputs than the processor's.
    """
    task, sizes = task or processor.task, [size]
    if not hasattr(processor, f"post_process_{task}_segmentation"):
        raise ValueError(f"the image processor has task={processor.task!r}; load it with task={task!r}")
    if task == "panoptic":
        found = processor.post_process_panoptic_segmentation(outputs, sizes, **rules)[0]
    elif task == "instance":
        found = processor.post_process_instance_rle(outputs, sizes, **rules)[0]
        found["labels"] = torch.tensor(found["labels"], dtype=torch.int64)
        found["scores"] = torch.tensor(found["scores"], dtype=torch.float64)
    elif rules.get("confidence"):
        found = processor.post_process_semantic_confidence(outputs, sizes)[0]
    else:
        found = {"segmentation": processor.post_process_semantic_segmentation(outputs, sizes)[0]}
    return {key: value.cpu() if isinstance(value, torch.Tensor) else value for key, value in found.items()}


def confident_instances(prediction: dict, threshold: float) -> dict:
    """An instance prediction of `predict_image` without the instances below a score."""
    kept = (prediction["scores"] >= threshold).nonzero()[:, 0]
    masks = [prediction["masks"][k] for k in kept.tolist()]
    return prediction | {"masks": masks, "labels": prediction["labels"][kept], "scores": prediction["scores"][kept]}


def iter_segments(prediction: dict) -> Iterator[tuple[int, float | None, np.ndarray]]:
    """Label, score and mask (H, W) bool of each segment in a prediction of `predict_image`.

    A semantic prediction has one segment per class. Its score is the mean confidence, or None without confidence.
    """
    if "masks" in prediction:
        labels, scores = prediction["labels"].tolist(), prediction["scores"].tolist()
        for label, score, mask in zip(labels, scores, prediction["masks"]):
            yield label, score, rle.decode(mask).astype(bool)
        return
    ids = prediction["segmentation"].numpy()
    if "segments_info" in prediction:
        for segment_info in prediction["segments_info"]:
            yield segment_info["label_id"], segment_info["score"], ids == segment_info["id"]
        return
    for label in np.unique(ids[ids >= 0]).tolist():
        mask = ids == label
        score = float(prediction["confidence"].numpy()[mask].mean()) if "confidence" in prediction else None
        yield label, score, mask


def counted(images: int) -> str:
    """Number and noun: "1 image", "2 images"."""
    return f"{images} image" if images == 1 else f"{images} images"


def error_line(error: Exception) -> str:
    """The first line of an error."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _placed(model) -> tuple[torch.device, torch.dtype]:
    """Device and dtype of the inputs: those of the first parameter, or the attributes of a model without parameters."""
    owner = next(model.parameters(), model) if hasattr(model, "parameters") else model
    return torch.device(owner.device), owner.dtype


class _Inputs(Dataset):
    """Samples {"item", "size", "pixel_values" (v, 3, S_h, S_w), "patch_offsets"}, or {"failure": (item, reason)}."""

    def __init__(self, images, processor, read: Callable, catch: bool):
        self.images, self.processor, self.read, self.catch = images, processor, read, catch
        self.reads_bands = getattr(processor, "num_channels", 3) != 3 and processor.do_rescale

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict:
        item = self.images[index]
        try:
            image = pixels = self.read(item)
            if self.reads_bands and image.is_floating_point():
                pixels = image / 255  # dark pixels from 0 to 255 would be read as fractions
            inputs = self.processor(pixels, return_tensors="pt")
        except FAILS_ALONE as error:
            if not self.catch:
                raise
            return {"failure": (item, error_line(error))}
        size = image.size[::-1] if isinstance(image, Image.Image) else tuple(image.shape[-2:])
        return {"item": item, "size": size, **inputs}


def _collate(samples: list[dict]) -> dict:
    """A batch: {"items", "sizes", "failures", "pixel_values" (V, 3, S_h, S_w), "patch_offsets" [(i, start, end)]}."""
    good = [sample for sample in samples if "failure" not in sample]
    offsets = []
    for i, sample in enumerate(good):
        offsets += [(i, int(start), int(end)) for _, start, end in sample["patch_offsets"]]
    return {
        "items": [sample["item"] for sample in good],
        "sizes": [sample["size"] for sample in good],
        "failures": [sample["failure"] for sample in samples if "failure" in sample],
        "pixel_values": torch.cat([sample["pixel_values"] for sample in good]) if good else None,
        "patch_offsets": offsets,
    }


def _image_outputs(i: int, outputs, offsets: list[tuple[int, int, int]]) -> SimpleNamespace:
    """The outputs for image `i` of a batch: one input, or all its windows."""
    part = slice(i, i + 1)
    if offsets:
        windows = [v for v, (image, _, _) in enumerate(offsets) if image == i]
        part = slice(windows[0], windows[-1] + 1)
    return SimpleNamespace(
        masks_queries_logits=outputs.masks_queries_logits[part],
        class_queries_logits=outputs.class_queries_logits[part],
        patch_offsets=[(0, start, end) for _, start, end in offsets[part]] or None,
    )
