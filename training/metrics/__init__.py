"""The reference tools' numbers, batch by batch: panoptic quality, mean IoU, mask AP, out-of-distribution detection."""

from .average_precision import MaskAveragePrecision
from .mean_iou import MeanIoU
from .out_of_distribution import OutOfDistribution
from .panoptic_quality import PanopticQuality

__all__ = ["MaskAveragePrecision", "MeanIoU", "OutOfDistribution", "PanopticQuality"]
