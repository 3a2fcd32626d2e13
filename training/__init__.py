"""Data sets, augmentation, optimizer and schedule, mask annealing, metrics, trainer.

Public names are imported on first use, so that annealing alone does not import the Trainer.
"""

from ..configuration import lazy_names

_MODULE_OF = {
    "annealing_steps": "annealing",
    "mask_annealing_probability": "annealing",
    "MaskAnnealingCallback": "annealing",
    "layerwise_lr_groups": "optimizer",
    "two_stage_warmup_poly_schedule": "optimizer",
    "EoMTTrainingArguments": "arguments",
    "EoMTTrainer": "trainer",
    "EoMTDataCollator": "collator",
    "PanopticQuality": "metrics.panoptic_quality",
    "MeanIoU": "metrics.mean_iou",
    "MaskAveragePrecision": "metrics.average_precision",
}
__all__ = sorted(_MODULE_OF)
__getattr__, __dir__ = lazy_names(__name__, _MODULE_OF)
