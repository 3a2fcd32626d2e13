"""Post-processing of a batch: transformers' method names, signatures and result keys for the pure functions of
panoptic.py, instance.py and semantic.py.

V model inputs (one per image or window) · Q queries · C classes · H, W original size of an image
g_h, g_w output grid of the model

Outputs need `masks_queries_logits` (V, Q, g_h, g_w) and `class_queries_logits` (V, Q, C + 1), of any float type, and
`patch_offsets` for windows. All arithmetic is fp32.
"""

import functools
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput

from .geometry import Placement, Size, input_size_of, placement
from .instance import encoded_instances, instance_segmentation, row_runs
from .panoptic import panoptic_segmentation
from .semantic import semantic_scores, semantic_segmentation


def full_precision(method):
    """Decorator: no gradients, autocast, TF32 or bf16 products, because upsampling by matrices needs fp32.

    The precision is restored at the end; an inherited one ("none") stays inherited. By torch's new interface: after any
    use of it, as by transformers' `tf32=True`, reading the old one raises.
    """

    @functools.wraps(method)
    def exact(self, outputs, *args, **kwargs):
        logits = outputs.masks_queries_logits
        device = (logits[0] if isinstance(logits, (list, tuple)) else logits).device
        products = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
        before = [backend.fp32_precision for backend in products]
        try:
            for backend in products:
                backend.fp32_precision = "ieee"
            with torch.no_grad(), torch.autocast(device.type, enabled=False):
                return method(self, outputs, *args, **kwargs)
        finally:
            for backend, precision in zip(products, before):
                backend.fp32_precision = "none"
                if backend.fp32_precision != precision:
                    backend.fp32_precision = precision

    return exact


def for_task(*tasks: str):
    """Decorator: only processors of these tasks have the method. transformers' pipeline calls the first that it finds,
    in the order panoptic, instance, semantic."""
    return lambda method: _ForTask(method, tasks)


class _ForTask:
    """The descriptor that `for_task` puts in the place of a method."""

    def __init__(self, method, tasks: tuple[str, ...]):
        self.method, self.tasks = method, tasks
        functools.update_wrapper(self, method)

    def __get__(self, processor, owner=None):
        if processor is None:
            return self.method
        if processor.task not in self.tasks:
            raise AttributeError(
                f"{self.method.__name__} is not for a processor with task={processor.task!r}; create it with "
                f"task={self.tasks[-1]!r}"
            )
        return self.method.__get__(processor, owner)


class PostProcessing:
    """Base class of the image processors. It uses their `task`, `size`, `stuff_label_ids`, `do_…` and `place`."""

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
        """Panoptic maps: for each image {"segmentation": (H, W) int32, "segments_info": [segment, …]}. A segment is
        {"id", "label_id", "was_fused", "score"}; ids are 0, 1, … in query order, −1 is void.

        Args:
            target_sizes: (height, width) of each original image; the size of the model's input by default.
            threshold: a query is kept if its class probability is above this (the authors' 0.8).
            mask_threshold: σ from which a pixel belongs to a mask.
            overlap_mask_area_threshold: least share of its mask that a query must own.
            stuff_classes: classes with merged segments; the processor's `stuff_label_ids` by default.
            size: `size` of the processor for these inputs, if it was another.
            label_ids_to_fuse: Mask2Former's name for `stuff_classes`.
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
        """Instances: for each image {"segmentation", "segments_info": [{"id", "label_id", "score"}, …]}, best first.

        Args:
            target_sizes: (height, width) of each original image; the size of the model's input by default.
            threshold: least score of an instance. The authors keep all `top_k` for AP: 0. For display, use 0.5.
            size: `size` of the processor for these inputs, if it was another.
            mask_threshold: σ above which a pixel belongs to a mask.
            overlap_mask_area_threshold: ignored, as instances may overlap; transformers' pipeline passes it.
            top_k: number of (query, class) pairs.
            return_binary_maps: "segmentation" is (n, H, W) bool with complete masks. Otherwise it is (H, W) int32: the
                higher score wins a pixel, −1 is void, and segments without pixels are not listed.
            return_coco_annotation: "segmentation" is a list of run-length encodings in Mask2Former's form: start and
                length of each run in turn, pixels counted along the rows from 1.

        Raises:
            ValueError: when both `return_…` are True.
        """
        if return_binary_maps and return_coco_annotation:
            raise ValueError("return_binary_maps and return_coco_annotation cannot both be True")
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
        """Complete instances in little memory: for each image {"size", "masks", "labels", "scores"}, best first, with
        masks in COCO's run-length encoding."""
        results = []
        for masks, classes, place in self._padded(outputs, target_sizes, None):
            encoded, labels, scores = encoded_instances(masks, classes, place, top_k, mask_threshold)
            results.append({"size": place.original, "masks": encoded, "labels": labels, "scores": scores})
        return results

    @full_precision
    def post_process_semantic_segmentation(
        self, outputs, target_sizes: list[Size] | None = None, size=None, return_segmentation_scores: bool = False
    ) -> list:
        """Semantic maps: for each image (H, W) int32 class labels.

        Args:
            target_sizes: (height, width) of each original image. By default windows are not stitched: one map for each
                model input, at its size.
            size: `size` of the processor for these inputs, if it was another.
            return_segmentation_scores: return objects with `segmentation` and `segmentation_scores` (C, H, W).
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
        """Semantic maps with confidence: for each image {"segmentation": (H, W) int32, "confidence": (H, W) float}, the
        score of the winning class, clipped to [0, 1] (paper Sec. C)."""
        results = []
        for masks, classes, place in self._stitched(outputs, target_sizes, size):
            labels, confidence = semantic_segmentation(masks, classes, place)
            results.append({"segmentation": labels, "confidence": confidence})
        return results

    def _padded(self, outputs, target_sizes, size) -> Iterator[tuple[Tensor, Tensor, Placement]]:
        """Mask logits (Q, g_h, g_w), class logits (Q, C + 1) and placement of each image, which is one input."""
        masks, classes, offsets = _unpack(outputs)
        size = self.size if size is None else size
        if offsets is not None:
            raise ValueError(
                "outputs of windows (patch_offsets) cannot be joined to panoptic or instance segments; create the "
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
        """Placement of a model input (or window) as an image of its own, for calls without target sizes."""
        side = input_size_of(size, windowed)
        if not (windowed or self.do_pad):  # masks have the shape of the resized image
            side = placement(*masks.shape[-2:], side, pad=False).resized
        return placement(*side, side)

    def _stitched(self, outputs, target_sizes, size) -> Iterator[tuple[Tensor, Tensor, Placement]]:
        """Mask logits (V, Q, g_h, g_w), class logits (V, Q, C + 1) and placement of each image, for its V windows."""
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
                f"target_sizes {_sizes(target_sizes)} need {len(expected)} inputs of {input_size_of(size, windowed)}, "
                f"but there are outputs for {len(masks)}{'' if offsets is None else f' at {offsets}'}"
            )
        for place in places:
            part = slice(start, start + len(place.windows))
            yield masks[part], classes[part], place
            start = part.stop


def _unpack(outputs) -> tuple[Tensor, Tensor, list[tuple[int, int, int]] | None]:
    """Mask logits (V, Q, g_h, g_w), class logits (V, Q, C + 1), and offsets [(image, start, end), …] or `None`.

    transformers' pipeline nests batches of windows: one entry of logits and one list of offsets per image.
    """
    masks, classes = outputs.masks_queries_logits, outputs.class_queries_logits
    offsets = getattr(outputs, "patch_offsets", None)
    masks = torch.cat(list(masks)) if isinstance(masks, (list, tuple)) else masks
    classes = torch.cat(list(classes)) if isinstance(classes, (list, tuple)) else classes
    masks = masks.flatten(0, 1) if masks.ndim == 5 else masks
    classes = classes.flatten(0, 1) if classes.ndim == 4 else classes
    if not (masks.isfinite().all() and classes.isfinite().all()):  # the result would be "no segments"
        raise ValueError("the model's logits are not finite; its weights are damaged, or the dtype is too small")
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
    """Same images, starts within a pixel: transformers' processor truncates the resized size, ours rounds it."""
    if len(offsets) != len(expected):
        return False
    return all(image == i and abs(start - s) <= 1 for (image, start, _), (i, s, _) in zip(offsets, expected))


def _sizes(target_sizes) -> list[Size]:
    return [(int(height), int(width)) for height, width in target_sizes]
