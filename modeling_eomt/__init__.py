"""Tokens → masks: encoder, masked attention, heads, matcher, loss, the model, checkpoints."""

from .eomt import EoMTForUniversalSegmentation
from .outputs import EoMTForUniversalSegmentationOutput
from .pretrained import EoMTPreTrainedModel
from .weights.authors import convert_to_authors, load_authors_checkpoint

__all__ = [
    "EoMTForUniversalSegmentation",
    "EoMTForUniversalSegmentationOutput",
    "EoMTPreTrainedModel",
    "convert_to_authors",
    "load_authors_checkpoint",
]
