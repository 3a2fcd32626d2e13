"""Data sets, augmentation, optimizer and schedule, mask annealing, metrics, trainer.

Public names are imported on first use, so that annealing alone does not cost the import of the Trainer.
"""

import importlib

_MODULE_OF = {
    "annealing_steps": "callbacks.annealing",
    "mask_annealing_probability": "callbacks.annealing",
    "MaskAnnealingCallback": "callbacks.annealing",
    "layerwise_lr_groups": "optimization.optimizer",
    "two_stage_warmup_poly_schedule": "optimization.schedule",
    "EoMTTrainingArguments": "arguments",
    "EoMTTrainer": "trainer",
    "EoMTDataCollator": "collator",
    "PanopticQuality": "metrics.panoptic_quality",
    "MeanIoU": "metrics.mean_iou",
    "MaskAveragePrecision": "metrics.average_precision",
}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
