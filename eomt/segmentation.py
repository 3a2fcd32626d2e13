"""`eomt.segment`: masks, names and scores of images in one call.

import eomt
found = eomt.segment("photo.jpg", "tue-mps/coco_panoptic_eomt_large_640")
for name, score, mask in zip(found.names, found.scores, found.masks): …
found.picture().save("segments.png")
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor

from .configuration import TASK_ROWS
from .drawing import draw_segments
from .image_processing.bands import picture_of
from .image_processing.images import scaled_to_255, upright
from .image_processing.inference import Inferred, confident_instances, infer, iter_segments, open_source
from .loading import load_for_inference, model_files, usable_device
from .modeling_eomt import PMTForUniversalSegmentation

_LISTED = 12  # segments in the `repr`


@dataclass(frozen=True, repr=False)
class Segmentation:
    """The n segments of an image."""

    image: Image.Image
    "RGB, upright, of the size of the masks; of other channels the first three."
    masks: np.ndarray
    "(n, H, W) bool. Instances may overlap, best score first."
    labels: list[int]
    names: list[str]
    scores: list[float]
    "Probabilities; semantic: mean confidence over the pixels of the class."
    task: str

    def __len__(self) -> int:
        return len(self.masks)

    def __repr__(self) -> str:
        listed = [f"{name} {score:.2f}" for name, score in zip(self.names, self.scores)]
        more = [f"{len(self) - _LISTED} more"] if len(self) > _LISTED else []
        size = f"{self.image.width} × {self.image.height}"
        return f"Segmentation({self.task}, {size}: {', '.join(listed[:_LISTED] + more) or 'nothing'})"

    def _repr_png_(self) -> bytes:
        """The display in a notebook."""
        buffer = BytesIO()
        self.picture().save(buffer, "PNG")
        return buffer.getvalue()

    def picture(self, **options) -> Image.Image:
        """Draw the segments over the image. Options as for `eomt.drawing.draw_segments`."""
        info = [{"id": k, "label_id": label} for k, label in enumerate(self.labels)]
        return draw_segments(
            self.image, self.masks, info, dict(zip(self.labels, self.names)), **{"legend": True} | options
        )


def segment(
    images,
    model,
    *,
    processor=None,
    task: str | None = None,
    threshold: float | None = None,
    masked: bool | None = None,
    device: str | None = None,
    batch_size: int = 1,
) -> Segmentation | list:
    """Segment an image, or a list of images, with one model or several.

    Args:
        images: a path, URL, PIL image, or array or tensor of (C, H, W) or (H, W, C); or a list of them.
        model: a folder, also of `eomt export`, or a hub name (the last two models stay loaded); or a model object. An
            object computes in evaluation mode; its mode is restored afterwards. Or a list of models: PMT models that
            share an encoder (`share_encoder`) run it once per image where their inputs are the same.
        processor: image processor; by default loaded from the folder or hub name of the model. For several models a
            list.
        task: "panoptic", "instance" or "semantic"; the model's by default.
        threshold: panoptic: least class probability of a segment (0.8); instance: least score (0.5).
        masked: masked attention on or off; as trained by default (`config.masked_inference`).
        device: "cpu", "cuda", …; by default the best available, or the current device of a model object.

    Returns:
        One `Segmentation`, or a list for a list of images; for several models a list with this for each.

    Raises:
        ValueError: when there is no such model or processor, an image cannot be read, the threshold is not a
            probability, or the model cannot be masked.
        FileNotFoundError: when an image is missing.
    """
    several = isinstance(images, Sequence) and not isinstance(images, str)
    if isinstance(model, list | tuple):
        options = {"task": task, "threshold": threshold, "masked": masked, "device": device, "batch_size": batch_size}
        found = _by_all(list(images) if several else [images], model, processor, options)
        return found if several else [results[0] for results in found]
    if isinstance(model, str | os.PathLike):
        name = os.path.abspath(model) if os.path.isdir(model) else str(model)
        model, own = _load(name, device, task, str(model_files(name)))
        processor = processor or own
    else:
        processor = processor or _processor_of(model)
        if device is not None:
            model = model.to(usable_device(device))
    task = task or processor.task
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold}; give a probability from 0 to 1")
    threshold = TASK_ROWS[task].drawing_threshold if threshold is None else threshold
    rules = {"panoptic": {"threshold": threshold}, "semantic": {"confidence": True}}.get(task, {})
    channels = getattr(processor, "num_channels", 3)
    opened = [_open(image, channels) for image in (images if several else [images])]
    names = model.config.id2label
    with _inferring(model, masked):
        found = [
            _segmentation(result, names, task, threshold)
            for result in infer(
                model, processor, opened, task=task, batch_size=batch_size, read=lambda image: image, **rules
            )
        ]
    return found if several else found[0]


def _by_all(images: list, models, processor, options: dict) -> list[list[Segmentation]]:
    """The segmentations by each model, batch by batch, so that a shared encoder remembers the batch."""
    processors = [None] * len(models) if processor is None else processor
    if not isinstance(processors, list | tuple) or len(processors) != len(models):
        raise ValueError(f"processor is {processor!r}; give a list with one for each of the {len(models)} models")
    if options["batch_size"] < 1:
        raise ValueError(f"batch_size is {options['batch_size']}; give at least 1")
    found = [[] for _ in models]
    encoders = {id(model.encoder): model.encoder for model in models if isinstance(model, PMTForUniversalSegmentation)}
    with ExitStack() as remembering:
        for encoder in encoders.values():
            remembering.enter_context(encoder.remembering())
        for first in range(0, len(images), options["batch_size"]):
            batch = images[first : first + options["batch_size"]]
            for results, model, own in zip(found, models, processors):
                results += segment(batch, model, processor=own, **options)
    return found


@lru_cache(maxsize=2)
def _load(name: str, device: str | None, task: str | None, weights: str):
    """`weights` is part of the cache key, so a retrained model is reloaded."""
    return load_for_inference(name, device, task=task)


def _processor_of(model):
    source = model.config.name_or_path
    try:
        return AutoImageProcessor.from_pretrained(source)
    except OSError:
        raise ValueError(f"there is no image processor beside the model ({source!r}); pass processor=") from None


@contextmanager
def _inferring(model, masked: bool | None) -> Iterator[None]:
    """Evaluation mode and inference masking for the model, restored at the end."""
    switch = getattr(model, "inference_masking", None)  # transformers' own EoMT and exported models have none
    if switch is None and masked is not None:
        probabilities = getattr(model, "attn_mask_probs", None)
        if probabilities is None or masked != bool(probabilities.any()):
            raise ValueError(f"masked is {masked}; {type(model).__name__} has no switch for masked attention")
    training = getattr(model, "training", False)
    model.eval()
    try:
        with switch(masked) if switch else nullcontext():
            yield
    finally:
        if training:
            model.train()


def _open(source, channels: int) -> Image.Image | torch.Tensor:
    image = open_source(upright(source) if isinstance(source, Image.Image) else source, channels)
    if isinstance(image, Image.Image) or channels != 3:
        return image
    pixels = image if image.dtype == torch.uint8 else scaled_to_255(image).round().clamp(0, 255).byte()
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())


def _segmentation(result: Inferred, names: dict, task: str, threshold: float) -> Segmentation:
    found = confident_instances(result.prediction, threshold) if task == "instance" else result.prediction
    segments = list(iter_segments(found))
    masks = [mask for _, _, mask in segments]
    labels = [label for label, _, _ in segments]
    return Segmentation(
        image=result.item if isinstance(result.item, Image.Image) else picture_of(result.item.cpu()),
        masks=np.stack(masks) if masks else np.zeros((0, *result.size), bool),
        labels=labels,
        names=[names[label] for label in labels],
        scores=[score for _, score, _ in segments],
        task=task,
    )
