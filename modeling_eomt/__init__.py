"""Tokens → masks: encoder, masked attention, heads, loss, the model, checkpoints."""

from .authors import convert_to_authors, load_authors_checkpoint
from .eomt import EoMTForUniversalSegmentation
from .outputs import EoMTForUniversalSegmentationOutput
from .pmt import PMTForUniversalSegmentation
from .pretrained import EoMTPreTrainedModel

__all__ = [
    "EoMTForUniversalSegmentation",
    "EoMTForUniversalSegmentationOutput",
    "EoMTPreTrainedModel",
    "PMTForUniversalSegmentation",
    "convert_to_authors",
    "load_authors_checkpoint",
]
