"""Pixels ↔ tensors: geometry and its inverse, targets, post-processing, pictures, processors."""

from .colours import class_colours
from .geometry import Placement, input_size_of, placement
from .images import read_image
from .instance import instance_segmentation
from .panoptic import panoptic_segmentation
from .pictures import draw_confidence, draw_segments, side_by_side
from .processor import (
    EoMTImageProcessor,
    EomtImageProcessor,
    EoMTImageProcessorPil,
    EomtImageProcessorPil,
)
from .semantic import semantic_scores, semantic_segmentation

__all__ = [
    "EoMTImageProcessor",
    "EoMTImageProcessorPil",
    "EomtImageProcessor",
    "EomtImageProcessorPil",
    "Placement",
    "class_colours",
    "draw_confidence",
    "draw_segments",
    "input_size_of",
    "instance_segmentation",
    "panoptic_segmentation",
    "placement",
    "read_image",
    "semantic_scores",
    "semantic_segmentation",
    "side_by_side",
]
