"""Model outputs → segments, for a batch: transformers' method names, signatures and result keys around the pure
functions of panoptic.py, instance.py and semantic.py.

V model inputs (as many as images, unless windows were cut) · Q queries · C classes · H, W an image's own size
g_h, g_w the model's output grid

Outputs need `masks_queries_logits` (V, Q, g_h, g_w) and `class_queries_logits` (V, Q, C + 1), of any float type, and
`patch_offsets` where windows were cut. All arithmetic is fp32.
"""

import functools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput

from .geometry import Placement, Size, input_size_of, placement
from .instance import encoded_instances, instance_segmentation, row_runs
from .panoptic import panoptic_segmentation
from .semantic import semantic_scores, semantic_segmentation


def full_precision(method):
    """Run a method of `outputs` without gradients, autocast, TF32 or bf16 products: up-sampling by matrices must stay
    exact to fp32 rounding."""

    @functools.wraps(method)
    def exact(self, outputs, *args, **kwargs):
        logits = outputs.masks_queries_logits
        with _full_precision((logits[0] if isinstance(logits, (list, tuple)) else logits).device):
            return method(self, outputs, *args, **kwargs)

    return exact


def for_task(*tasks: str):
    """A method that a processor has only if its task is one of these, so that transformers' pipeline, which asks
    `hasattr` for panoptic, instance, semantic in this order, takes the model's own."""
    return lambda method: _ForTask(method, tasks)


class _ForTask:
    """The descriptor of `for_task`."""

    def __init__(self, method, tasks: tuple[str, ...]):
        self.method, self.tasks = method, tasks
        functools.update_wrapper(self, method)

    def __get__(self, processor, owner=None):
        if processor is None:
            return self.method
        if processor.task not in self.tasks:
            raise AttributeError(
                f"{self.method.__name__} is not for a processor with task={processor.task!r}; make one with "
                f"task={self.tasks[-1]!r}"
            )
        return self.method.__get__(processor, owner)


@contextmanager
def _full_precision(device: torch.device):
    """Precision is set and put back through torch's new interface: reading the old one raises once somebody, such as
    transformers' `tf32=True`, has used the new one. What was inherited is inherited again afterwards, not pinned.
    """
    products = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    before = [backend.fp32_precision for backend in products]
    try:
        for backend in products:
            backend.fp32_precision = "ieee"
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, precision in zip(products, before):
            backend.fp32_precision = "none"
            if backend.fp32_precision != precision:
                backend.fp32_precision = precision


class PostProcessing:
    """Mixin of the image processors, whose `task`, `size`, `stuff_label_ids`, `do_…` and `place` it uses."""

    @for_task("panoptic")
    @full_precision
    def post_process_panoptic_segmentation(
        self,
        outputs,
        target_sizes: list[Size] | None = None,
        threshold: float = 0.8,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.8,
        stuff_classes: list[int] | None = None,
        size=None,
        *,
        label_ids_to_fuse: Iterable[int] | None = None,
    ) -> list[dict]:
        """Outputs → for each image {"segmentation": (H, W) int32, "segments_info": [segment, …]}; a segment is {"id",
        "label_id", "was_fused", "score"}, ids are 0, 1, … in query order, −1 is void.

        Args:
            target_sizes: (height, width) of each original image; without, the map has the size of the model's input.
            threshold: a query stays if its class probability is above this (the authors' 0.8).
            mask_threshold: σ from which a pixel belongs to a query's mask.
            overlap_mask_area_threshold: a query is dropped if it owns less than this share of its mask.
            stuff_classes: classes whose segments are merged; the processor's `stuff_label_ids` by default.
            size: the processor's `size` of the inputs, if it was another.
            label_ids_to_fuse: Mask2Former's name of `stuff_classes`.
        """
        stuff = self.stuff_label_ids
        for given in (label_ids_to_fuse, stuff_classes):
            stuff = stuff if given is None else list(given)
        results = []
        for masks, classes, place in self._padded(outputs, target_sizes, size):
            segmentation, segments = panoptic_segmentation(
                masks, classes, place, threshold, mask_threshold, overlap_mask_area_threshold, stuff
            )
            results.append({"segmentation": segmentation, "segments_info": segments})
        return results

    @for_task("panoptic", "instance")
    @full_precision
    def post_process_instance_segmentation(
        self,
        outputs,
        target_sizes: list[Size] | None = None,
        threshold: float = 0.0,
        size=None,
        *,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float | None = None,
        top_k: int = 100,
        return_binary_maps: bool = False,
        return_coco_annotation: bool = False,
    ) -> list[dict]:
        """Outputs → for each image {"segmentation", "segments_info": [{"id", "label_id", "score"}]}, best score first.

        Args:
            target_sizes: (height, width) of each original image; without, the map has the size of the model's input.
            threshold: lowest score that stays. 0 keeps all `top_k`, as the authors do for AP; to look at, take 0.5.
            size: the processor's `size` of the inputs, if it was another.
            mask_threshold: σ above which a pixel belongs to a mask.
            overlap_mask_area_threshold: without effect, instances may overlap; transformers' pipeline passes it.
            top_k: so many (query, class) pairs are considered.
            return_binary_maps: "segmentation" is (n, H, W) bool, one whole mask a segment. Otherwise (H, W) int32: the
                higher score wins a pixel, −1 is void, and a segment with no pixel left is not listed.
            return_coco_annotation: "segmentation" is a list with one run-length encoding a segment, in Mask2Former's
                form: start and length of each run in turn, pixels counted along the rows from 1.

        Raises:
            ValueError: when both forms of masks are asked for.
        """
        if return_binary_maps and return_coco_annotation:
            raise ValueError("return_binary_maps and return_coco_annotation are both True; give one of them")
        results = []
        for masks, classes, place in self._padded(outputs, target_sizes, size):
            segmentation, segments = instance_segmentation(
                masks, classes, place, threshold, top_k, return_binary_maps, mask_threshold
            )
            if return_coco_annotation:
                segmentation = [row_runs(segmentation == segment["id"]) for segment in segments]
            results.append({"segmentation": segmentation, "segments_info": segments})
        return results

    @for_task("panoptic", "instance")
    @full_precision
    def post_process_instance_rle(
        self, outputs, target_sizes: list[Size], mask_threshold: float = 0.5, top_k: int = 100
    ) -> list[dict]:
        """As `post_process_instance_segmentation` with binary maps, in little memory: for each image {"size", "masks",
        "labels", "scores"}, masks in COCO's run-length encoding."""
        results = []
        for masks, classes, place in self._padded(outputs, target_sizes, None):
            encoded, labels, scores = encoded_instances(masks, classes, place, top_k, mask_threshold)
            results.append({"size": place.original, "masks": encoded, "labels": labels, "scores": scores})
        return results

    @full_precision
    def post_process_semantic_segmentation(
        self, outputs, target_sizes: list[Size] | None = None, size=None, return_segmentation_scores: bool = False
    ) -> list:
        """Outputs → for each image the (H, W) int32 map of class labels.

        Args:
            target_sizes: (height, width) of each original image. Without, nothing is stitched: one map for each model
                input, at its size.
            size: the processor's `size` of the inputs, if it was another.
            return_segmentation_scores: objects with `segmentation` and `segmentation_scores` (C, H, W) instead.
        """
        results = []
        for masks, classes, place in self._stitched(outputs, target_sizes, size):
            if return_segmentation_scores:
                scores = semantic_scores(masks, classes, place)
                data = {"segmentation": scores.argmax(0).int(), "segmentation_scores": scores}
                results.append(SemanticSegmentationPostProcessorOutput(data=data))
            else:
                results.append(semantic_segmentation(masks, classes, place)[0])
        return results

    @full_precision
    def post_process_semantic_confidence(
        self, outputs, target_sizes: list[Size] | None = None, size=None
    ) -> list[dict]:
        """As `post_process_semantic_segmentation`, with the confidence of every pixel (paper Sec. C): for each image
        {"segmentation": (H, W) int32, "confidence": (H, W) float in [0, 1]}, the winning class's score, clipped."""
        results = []
        for masks, classes, place in self._stitched(outputs, target_sizes, size):
            labels, confidence = semantic_segmentation(masks, classes, place)
            results.append({"segmentation": labels, "confidence": confidence})
        return results

    def _padded(self, outputs, target_sizes, size) -> Iterator[tuple[Tensor, Tensor, Placement]]:
        """For each image, which is one input, its (Q, g_h, g_w) and (Q, C + 1), and its placement."""
        masks, classes, offsets = _unpack(outputs)
        size = self.size if size is None else size
        if offsets is not None:
            raise ValueError(
                "outputs of windows (patch_offsets) cannot be joined to panoptic or instance segments; make the "
                "inputs with do_pad=True, do_split_image=False"
            )
        if target_sizes is None:
            places = [self._input_place(masks, size, windowed=False)] * len(masks)
        else:
            places = [self.place(*target, size, windowed=False) for target in _sizes(target_sizes)]
        if len(places) != len(masks):
            raise ValueError(f"{len(places)} target_sizes for the outputs of {len(masks)} images")
        return zip(masks, classes, places)

    def _input_place(self, masks: Tensor, size, windowed: bool) -> Placement:
        """Where there are no target sizes, a model input (or window) is taken as an image of its own."""
        side = input_size_of(size, windowed)
        if not (windowed or self.do_pad):  # the resized image, whose shape the masks have
            side = placement(*masks.shape[-2:], side, pad=False).resized
        return placement(*side, side)

    def _stitched(self, outputs, target_sizes, size) -> Iterator[tuple[Tensor, Tensor, Placement]]:
        """For each image its windows' (V, Q, g_h, g_w) and (V, Q, C + 1), and its placement."""
        masks, classes, offsets = _unpack(outputs)
        size = self.size if size is None else size
        windowed = offsets is not None or bool(self.do_split_image)
        if target_sizes is None:
            place = self._input_place(masks, size, windowed)
            for i in range(len(masks)):
                yield masks[i : i + 1], classes[i : i + 1], place
            return
        start = 0
        places = [self.place(*target, size, windowed) for target in _sizes(target_sizes)]
        expected = [(i, *offset) for i, place in enumerate(places) for offset in place.offsets]
        if len(expected) != len(masks) or (offsets is not None and not _agree(offsets, expected)):
            raise ValueError(
                f"target_sizes {_sizes(target_sizes)} make {len(expected)} inputs of {input_size_of(size, windowed)}, "
                f"but there are outputs for {len(masks)}{'' if offsets is None else f' at {offsets}'}"
            )
        for place in places:
            part = slice(start, start + len(place.windows))
            yield masks[part], classes[part], place
            start = part.stop


def _unpack(outputs) -> tuple[Tensor, Tensor, list[tuple[int, int, int]] | None]:
    """Outputs → (V, Q, g_h, g_w), (V, Q, C + 1), offsets [(image, start, end)] or `None`.

    With windows and a batch in transformers' pipeline, logits arrive with one entry and offsets with one
    list an image.
    """
    masks, classes = outputs.masks_queries_logits, outputs.class_queries_logits
    offsets = getattr(outputs, "patch_offsets", None)
    masks = torch.cat(list(masks)) if isinstance(masks, (list, tuple)) else masks
    classes = torch.cat(list(classes)) if isinstance(classes, (list, tuple)) else classes
    masks = masks.flatten(0, 1) if masks.ndim == 5 else masks
    classes = classes.flatten(0, 1) if classes.ndim == 4 else classes
    if not (masks.isfinite().all() and classes.isfinite().all()):  # they would look like "no segments"
        raise ValueError("the model's logits are not finite; its weights, or the number type, are damaged or too small")
    if offsets is None or len(offsets) == 0:
        return masks, classes, None
    offsets = [group.tolist() if isinstance(group, Tensor) else list(group) for group in offsets]
    if isinstance(offsets[0][0], (int, float)):
        return masks, classes, [tuple(int(v) for v in row) for row in offsets]
    flat = []
    for image, windows in enumerate(offsets):
        flat += [(image, int(start), int(end)) for _, start, end in windows]
    return masks, classes, flat


def _agree(offsets, expected) -> bool:
    """Same images, starts within a pixel: transformers' own processor cuts the resized size down where we round."""
    return len(offsets) == len(expected) and all(
        a[0] == b[0] and abs(a[1] - b[1]) <= 1 for a, b in zip(offsets, expected)
    )


def _sizes(target_sizes) -> list[Size]:
    return [(int(height), int(width)) for height, width in target_sizes]
