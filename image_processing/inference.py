"""The one inference loop: images → model inputs → model → segments by the task.

V model inputs, more than images where windows are cut · S_h, S_w their size

`eomt predict`, `eomt evaluate`, the trainer's evaluation and the pipeline share it. A model is any callable that takes
`pixel_values` and `patch_offsets` and returns EoMT's outputs.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as rle
from torch.utils.data import DataLoader, Dataset

from .images import open_image, to_rgb_tensor

FAILS_ALONE = (ValueError, OSError, RuntimeError, MemoryError)
"""What one image may raise while the others continue: no picture, too large for memory, its file name too long, …"""


@dataclass
class Inferred:
    """One image's result."""

    item: object
    "The entry of `images`."
    size: tuple[int, int]
    "(height, width) of the image and of its segmentation."
    prediction: dict
    "See `predict_image`; on the host."
    before_blocks: list[dict] = field(default_factory=list)
    "The same of the predictions that masked attention makes, earliest first, where asked for."


def open_source(source) -> Image.Image | torch.Tensor:
    """Path, URL, base64 text or picture → RGB picture; array or tensor → (3, H, W)."""
    return to_rgb_tensor(source) if hasattr(source, "shape") else open_image(source)


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
    """Segment images one batch after the other, in their order.

    Args:
        model: on its device, in its dtype and in evaluation mode.
        images: a sequence or a data set of anything that `read` turns into an image.
        task: the processor's by default.
        num_workers: processes that read and resize.
        intermediate: also give the predictions that masked attention makes; there are none where it is off.
        on_error: called with (item, reason) for an image that cannot be read or segmented, which is then left out.
            Without it the error is raised.
        rules: thresholds and so on; see `predict_image`.
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
        """A batch's outputs, or the error."""
        if not batch["items"]:
            return None
        pixels = batch["pixel_values"].to(device, dtype, non_blocking=True)  # [V, 3, S_h, S_w]
        try:
            with torch.no_grad():  # inference tensors would stay in what FSDP gathers
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
                found = None  # large images' results are large


def _computed(compute: Callable, batches: Iterable, at_once: int) -> Iterator[tuple]:
    """(batch, its outputs), in the batches' order.

    at_once: batches that are computed in threads while the caller uses the last, for a model that takes calls from
    threads; 0: each is computed when it is asked for.
    """
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
    """One image's outputs → its prediction at `size` (height, width), on the host.

    Panoptic: {"segmentation" (H, W), "segments_info"}. Instance: {"size", "masks" (COCO's run-length encoding),
    "labels" (n,), "scores" (n,)}, the best 100. Semantic: {"segmentation" (H, W)}, with `confidence=True` also
    "confidence" (H, W).

    Args:
        task: the processor's by default.
        rules: of the processor's method: for panoptic `threshold`, `stuff_classes`, …

    Raises:
        ValueError: when the processor is for another task, whose inputs differ.
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
    """An instance prediction of `predict_image` → the same without instances that score below the threshold."""
    kept = (prediction["scores"] >= threshold).nonzero()[:, 0]
    masks = [prediction["masks"][k] for k in kept.tolist()]
    return prediction | {"masks": masks, "labels": prediction["labels"][kept], "scores": prediction["scores"][kept]}


def iter_segments(prediction: dict) -> Iterator[tuple[int, float | None, np.ndarray]]:
    """A prediction of `predict_image` → label, score and mask (H, W) bool of each segment.

    Semantic: of each class that is present; its score is the mean confidence, None without `confidence=True`.
    """
    if "masks" in prediction:
        for label, score, mask in zip(
            prediction["labels"].tolist(), prediction["scores"].tolist(), prediction["masks"]
        ):
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
    """1 image, 2 images."""
    return f"{images} image" if images == 1 else f"{images} images"


def error_line(error: Exception) -> str:
    """The error in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _placed(model) -> tuple[torch.device, torch.dtype]:
    """Where a model takes its inputs, and their type; an exported model, which has no parameters, says so itself."""
    weights = next(model.parameters(), model) if hasattr(model, "parameters") else model
    return torch.device(weights.device), weights.dtype


class _Inputs(Dataset):
    """Items → {"item", "size", "pixel_values" (v, 3, S_h, S_w), "patch_offsets"}, or {"failure": (item, reason)}."""

    def __init__(self, images, processor, read: Callable, catch: bool):
        self.images, self.processor, self.read, self.catch = images, processor, read, catch

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict:
        item = self.images[index]
        try:
            image = self.read(item)
            inputs = self.processor(image, return_tensors="pt")
        except FAILS_ALONE as error:
            if not self.catch:
                raise
            return {"failure": (item, error_line(error))}
        size = image.size[::-1] if isinstance(image, Image.Image) else tuple(image.shape[-2:])
        return {"item": item, "size": size, **inputs}


def _collate(samples: list[dict]) -> dict:
    """→ {"items", "sizes", "failures", "pixel_values" (V, 3, S_h, S_w), "patch_offsets" [(image, start, end)]}."""
    good = [sample for sample in samples if "failure" not in sample]
    offsets = [(i, int(start), int(end)) for i, sample in enumerate(good) for _, start, end in sample["patch_offsets"]]
    return {
        "items": [sample["item"] for sample in good],
        "sizes": [sample["size"] for sample in good],
        "failures": [sample["failure"] for sample in samples if "failure" in sample],
        "pixel_values": torch.cat([sample["pixel_values"] for sample in good]) if good else None,
        "patch_offsets": offsets,
    }


def _image_outputs(i: int, outputs, offsets: list[tuple[int, int, int]]) -> SimpleNamespace:
    """A batch's outputs → those of its image `i`: of one input, or of its windows."""
    part = slice(i, i + 1)
    if offsets:
        windows = [v for v, (image, _, _) in enumerate(offsets) if image == i]
        part = slice(windows[0], windows[-1] + 1)
    return SimpleNamespace(
        masks_queries_logits=outputs.masks_queries_logits[part],
        class_queries_logits=outputs.class_queries_logits[part],
        patch_offsets=[(0, start, end) for _, start, end in offsets[part]] or None,
    )
