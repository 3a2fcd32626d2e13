"""The image processors: from images to model inputs, and from model outputs to segments.

Two back ends have the same results: `EoMTImageProcessor` (torchvision, any device) and `EoMTImageProcessorPil` (without
torchvision). On a CPU both resize with Pillow, as the authors do: torchvision's filter differs by up to 1/255.
"""

import math
import os
from collections.abc import Mapping
from typing import Any, get_type_hints

import numpy as np
import torch
from torch import Tensor
from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs
from transformers.utils import is_torchvision_available

from ..configuration.checkpoint import HUB_ARGUMENTS, checkpoint_stuff, checkpoint_task, read_beside
from ..configuration.eomt import code_upload_refused
from ..configuration.field_types import check_types, wrong
from ..configuration.tasks import TASKS
from .bands import open_any, to_bands
from .geometry import Placement, Size, input_size_of, placement, require_possible
from .images import flatten, pillow_resize, read_maps, scaled_to_255, to_rgb_tensor
from .postprocess import PostProcessing
from .targets import batch_targets, cut_inputs

_JSON = (bool, int, float, str, list, tuple, dict)


class EoMTImageProcessorKwargs(ImagesKwargs, total=False):
    """
    task (`str`, *optional*, defaults to `"panoptic"`):
        Task of the model. Decides between padding ("panoptic", "instance") and windows ("semantic").
    stuff_label_ids (`list[int]`, *optional*):
        Classes with merged segments in `post_process_panoptic_segmentation`.
    num_channels (`int`, *optional*, defaults to 3):
        Channels of the images. Other than 3: arrays, NPY, TIFF; `image_mean` and `image_std` have one value for each.
    num_labels (`int`, *optional*):
        Number of classes, to check the labels of segmentation maps.
    do_split_image (`bool`, *optional*):
        Cut the image into overlapping windows instead of padding it.
    ignore_index (`int`, *optional*):
        Value of ignored pixels in segmentation maps; 255 in plain label maps.
    do_reduce_labels (`bool`, *optional*, defaults to `False`):
        Label 0 of segmentation maps is background: ignore it and move the others down by one.
    """

    task: str
    stuff_label_ids: list[int] | None
    num_channels: int
    num_labels: int | None
    do_split_image: bool | None
    ignore_index: int | None
    do_reduce_labels: bool | None


class _EoMTProcessing(PostProcessing):
    """Common part of both back ends. They differ in `_resize` and `_finish`."""

    valid_kwargs = EoMTImageProcessorKwargs
    task = "panoptic"
    stuff_label_ids = None
    num_channels = 3
    num_labels = None
    resample = PILImageResampling.BILINEAR
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"shortest_edge": 640, "longest_edge": 640}
    default_to_square = True  # an int is a square
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    do_split_image = None
    do_pad = None
    ignore_index = None
    do_reduce_labels = False
    model_input_names = ["pixel_values"]

    def __init__(self, **kwargs):
        size = kwargs.get("size")
        if isinstance(size, list | tuple) and len(size) != 2:
            raise wrong("size", size, "a side, [height, width] or an object")
        super().__init__(**kwargs)
        self.stuff_label_ids = None if self.stuff_label_ids is None else [int(i) for i in self.stuff_label_ids]
        check_settings(vars(self), self.valid_kwargs)
        if self.do_pad is None and self.do_split_image is None:
            self.do_split_image = self.task == "semantic"
        elif self.do_split_image is None:
            self.do_split_image = False
        if self.do_pad is None:
            self.do_pad = not self.do_split_image
        input_size_of(self.size, self.do_split_image)  # raises for an unusable size

    @classmethod
    def get_image_processor_dict(cls, pretrained_model_name_or_path, **kwargs) -> tuple[dict, dict]:
        """Also read config.json: its classes decide the task of the hub's processors, which have none."""
        hub = {name: kwargs[name] for name in HUB_ARGUMENTS if kwargs.get(name)}
        saved, kwargs = super().get_image_processor_dict(pretrained_model_name_or_path, **kwargs)
        if isinstance(saved, dict):
            path = str(pretrained_model_name_or_path)
            saved = {**saved, "checkpoint": (read_beside(path, "config.json", **hub), path)}
        return saved, kwargs

    @classmethod
    def from_dict(cls, image_processor_dict: dict, **kwargs):
        """Also for files of transformers' processor, which has no task. The task (given, saved or inferred) decides
        between padding and windows, unless a keyword or a file of ours does."""
        saved = dict(image_processor_dict)
        config, path = saved.pop("checkpoint", ({}, None))
        own = saved.get("task") is not None
        if not own:
            saved["task"] = checkpoint_task(saved, config, saved, path)
        task = kwargs.get("task") or saved["task"]
        saved["stuff_label_ids"] = checkpoint_stuff(config, task, saved)
        check_settings({**saved, "task": task}, cls.valid_kwargs)
        if not own or (task == "semantic") != (saved["task"] == "semantic"):
            saved.pop("do_split_image", None)  # semantic models need windows; segments of windows cannot be joined
            saved.pop("do_pad", None)
        return super().from_dict(saved, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class="AutoImageProcessor"):
        raise code_upload_refused()

    def to_dict(self) -> dict:
        """Settings in transformers' form: its class name, and its keys for square sizes."""
        settings = super().to_dict()
        settings["image_processor_type"] = "EomtImageProcessor"
        height, width = input_size_of(self.size, self.do_split_image)
        if self.do_split_image and height == width:
            settings["size"] = {"shortest_edge": height}
        elif height == width:
            settings["size"] = {"shortest_edge": height, "longest_edge": width}
        return settings

    def place(self, height: int, width: int, size=None, windowed: bool | None = None) -> Placement:
        """Placement of an image of height × width pixels."""
        windowed = bool(self.do_split_image) if windowed is None else windowed
        return placement(
            height,
            width,
            self.size if size is None else size,
            windowed=windowed,
            pad=bool(self.do_pad or self.do_split_image),  # neither: the input is the resized image
            resize=bool(self.do_resize),
        )

    def _to_tensor(self, image, map_size: Size | None, data_format, do_rescale: bool) -> Tensor:
        """An image of any kind → (C, H, W), with values from 0 to 255 for the rescaling.

        Files, URLs and base64 text are opened in the orientation of their map. Other images are not turned: their maps
        fit them.
        """
        if isinstance(image, (str, os.PathLike)):
            image = open_any(image, self.num_channels, size=map_size)
            if isinstance(image, Tensor):
                return image
        if self.num_channels != 3:
            return to_bands(image, self.num_channels, data_format, has_fractions=do_rescale)
        image = to_rgb_tensor(image, data_format)
        return scaled_to_255(image) if do_rescale else image

    def preprocess(
        self, images, segmentation_maps=None, instance_id_to_semantic_id=None, *, segments_info=None, **kwargs
    ) -> BatchFeature:
        """Model inputs, and training targets if there are segmentation maps.

        Args:
            images: one or a list of PIL images, paths, URLs, arrays or tensors ((H, W), (H, W, C) or (C, H, W)).
            segmentation_maps: a map or its path for each image, of labels (semantic), instance ids, or segment ids
                (also a COCO panoptic PNG).
            instance_id_to_semantic_id: {instance id: class}, one for all images or one for each.
            segments_info: for each image a list of `{"id", "label_id" or "category_id", "iscrowd"}`. Crowds are
                dropped.
            kwargs: attributes of the processor for this call, except the task.

        Returns:
            `BatchFeature` with
            pixel_values: (B, 3, S_h, S_w) float; B counts all windows of all images, in order.
            patch_offsets: a tensor (image, start, end) for each window, along the longer side of the resized image;
                empty without windows.
            mask_labels, class_labels: with maps, (n, S_h, S_w) bool and (n,) int64 for each of the B inputs.

        Raises:
            ValueError: for maps of another size than their image, unknown ids or labels, and another task.
        """
        if kwargs.get("task") not in (None, self.task):
            raise ValueError(f"this processor is for task={self.task!r}; create one with task={kwargs['task']!r}")
        if kwargs.get("do_split_image") and kwargs.get("do_pad") is None:
            kwargs["do_pad"] = False
        elif kwargs.get("do_pad") and kwargs.get("do_split_image") is None:
            kwargs["do_split_image"] = False
        return super().preprocess(images, segmentation_maps, segments_info, instance_id_to_semantic_id, **kwargs)

    def _preprocess_image_like_inputs(
        self, images, segmentation_maps, segments_info, instance_id_to_semantic_id, **options
    ) -> BatchFeature:
        images = flatten(images)
        maps = None if segmentation_maps is None else read_maps(segmentation_maps, len(images))
        sizes = [None] * len(images) if maps is None else [ids.shape for ids in maps]
        form = options.get("input_data_format"), bool(options["do_rescale"])
        tensors = [self._to_tensor(image, size, *form) for image, size in zip(images, sizes)]
        if options.get("device") is not None:
            tensors = [image.to(options["device"]) for image in tensors]
        windowed = bool(options["do_split_image"])
        placements = [
            placement(
                *image.shape[-2:],
                options["size"],
                windowed=windowed,
                pad=bool(options["do_pad"]),
                resize=bool(options["do_resize"]),
            )
            for image in tensors
        ]
        inputs, offsets = [], []
        for index, (image, place) in enumerate(zip(tensors, placements)):
            require_possible(place)
            if place.resized != place.original:
                image = self._resize(image, place.resized, options["resample"])
            inputs += cut_inputs(image, place, 0)  # padded with black
            if windowed:
                offsets += [torch.tensor([index, start, end]) for start, end in place.offsets]
        data = {"pixel_values": self._finish(inputs, options), "patch_offsets": offsets}
        if maps is not None:
            data["mask_labels"], data["class_labels"] = batch_targets(
                maps,
                placements,
                segments_info,
                instance_id_to_semantic_id,
                ignore_index=options["ignore_index"],
                do_reduce_labels=bool(options["do_reduce_labels"]),
                num_labels=options["num_labels"],
            )
        return BatchFeature(
            data=data,
            tensor_type=options.get("return_tensors"),
            skip_tensor_conversion=["patch_offsets", "mask_labels", "class_labels"],
        )


def check_settings(settings: Mapping[str, Any], kinds: type) -> None:
    """Raise `ValueError` for a setting of a wrong type or out of range. Types that JSON does not have are accepted.

    Args:
        kinds: `valid_kwargs` of the processor, a TypedDict.
    """
    hints = get_type_hints(kinds)
    plain = {name: value for name, value in settings.items() if name in hints and isinstance(value, _JSON)}
    if isinstance(plain.get("size"), dict):  # transformers writes {"shortest_edge": 512, "longest_edge": null}
        plain["size"] = {edge: side for edge, side in plain["size"].items() if side is not None}
    check_types(hints, plain)
    if settings.get("task", TASKS[0]) not in TASKS:
        raise wrong("task", settings["task"], f"one of {', '.join(TASKS)}")
    for name in ("image_mean", "image_std", "rescale_factor"):
        value = settings.get(name)
        if value is None:
            continue
        values = value if isinstance(value, (list, tuple)) else [value]
        channels = settings.get("num_channels", 3)
        if len(values) not in (1, channels):
            raise wrong(name, value, f"one number, or {channels}, one for each channel")
        if not all(math.isfinite(v) for v in values):
            raise wrong(name, value, "finite")
        if name != "image_mean" and not all(v > 0 for v in values):
            raise wrong(name, value, "above 0")
    if settings.get("num_labels") is not None and settings["num_labels"] < 1:
        raise wrong("num_labels", settings["num_labels"], "1 or more")
    if any(label < 0 for label in settings.get("stuff_label_ids") or ()):
        raise wrong("stuff_label_ids", settings["stuff_label_ids"], "labels, 0 or more")


class EoMTImageProcessor(_EoMTProcessing, TorchvisionBackend):
    """Image processor of EoMT on torch tensors; see `EoMTImageProcessorKwargs` for the settings.

    Example: `EoMTImageProcessor(task="panoptic", size=640, stuff_label_ids=[80, 81])`.
    """

    def _resize(self, image: Tensor, size: tuple[int, int], resample) -> Tensor:
        pillow = isinstance(resample, (int, PILImageResampling))
        if image.device.type == "cpu" and pillow and image.dtype in (torch.uint8, torch.float32):
            return pillow_resize(image, size, resample)
        return self.resize(image, SizeDict(height=size[0], width=size[1]), resample=resample, antialias=True)

    def _finish(self, inputs: list[Tensor], options: Mapping) -> list[Tensor]:
        """(x / 255 − mean) / std, or the enabled steps of it, as float32."""
        return [
            self.rescale_and_normalize(
                image[None],
                options["do_rescale"],
                options["rescale_factor"],
                options["do_normalize"],
                options["image_mean"],
                options["image_std"],
            )[0]
            .float()
            .contiguous()
            for image in inputs
        ]


class EoMTImageProcessorPil(_EoMTProcessing, PilBackend):
    """`EoMTImageProcessor` without torchvision: the same settings and results, CPU only."""

    def _resize(self, image: Tensor, size: tuple[int, int], resample) -> Tensor:
        return pillow_resize(image, size, resample)

    def _finish(self, inputs: list[Tensor], options: Mapping) -> list[np.ndarray]:
        """The arithmetic of the torchvision back end, bit for bit: the rescaling is folded into mean and std."""
        factor = options["rescale_factor"] if options["do_rescale"] else 1
        if options["do_normalize"]:
            mean = np.asarray(options["image_mean"], np.float32).reshape(-1, 1, 1) * np.float32(1 / factor)
            std = np.asarray(options["image_std"], np.float32).reshape(-1, 1, 1) * np.float32(1 / factor)
            return [(image.numpy().astype(np.float32) - mean) / std for image in inputs]
        return [image.numpy().astype(np.float32) * np.float32(factor) for image in inputs]


if not is_torchvision_available():
    EoMTImageProcessor = EoMTImageProcessorPil


class EomtImageProcessor(EoMTImageProcessor):
    """The class name in saved files, also on the hub. Loading one returns an `EoMTImageProcessor`."""

    @classmethod
    def from_dict(cls, image_processor_dict: dict, **kwargs):
        return EoMTImageProcessor.from_dict(image_processor_dict, **kwargs)


class EomtImageProcessorPil(EoMTImageProcessorPil):
    """`EomtImageProcessor` for the Pillow back end."""

    @classmethod
    def from_dict(cls, image_processor_dict: dict, **kwargs):
        return EoMTImageProcessorPil.from_dict(image_processor_dict, **kwargs)
