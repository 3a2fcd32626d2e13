"""Tokens → masks: encoder, masked attention, heads, matcher, loss, the model, checkpoints."""

from .eomt import EoMTForUniversalSegmentation, EoMTPreTrainedModel
from .outputs import EoMTForUniversalSegmentationOutput

__all__ = [
    "EoMTForUniversalSegmentation",
    "EoMTForUniversalSegmentationOutput",
    "EoMTPreTrainedModel",
]
