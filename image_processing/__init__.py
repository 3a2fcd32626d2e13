"""Conversion between images and tensors: geometry, targets, post-processing, image processors."""

from .geometry import Placement, input_size_of, placement
from .images import read_image
from .instance import instance_segmentation
from .panoptic import panoptic_segmentation
from .processor import EoMTImageProcessor, EomtImageProcessor, EoMTImageProcessorPil, EomtImageProcessorPil
from .semantic import semantic_scores, semantic_segmentation

__all__ = [
    "EoMTImageProcessor",
    "EoMTImageProcessorPil",
    "EomtImageProcessor",
    "EomtImageProcessorPil",
    "Placement",
    "input_size_of",
    "instance_segmentation",
    "panoptic_segmentation",
    "placement",
    "read_image",
    "semantic_scores",
    "semantic_segmentation",
]
