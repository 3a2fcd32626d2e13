"""Streaming metrics with the results of the reference tools: panoptic quality, mean IoU, mask AP, OOD detection."""

from .average_precision import MaskAveragePrecision
from .mean_iou import MeanIoU
from .out_of_distribution import OutOfDistribution
from .panoptic_quality import PanopticQuality

__all__ = ["MaskAveragePrecision", "MeanIoU", "OutOfDistribution", "PanopticQuality"]
