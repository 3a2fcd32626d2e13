"""The paper's steps from ViT-Adapter + Mask2Former to EoMT (Section 3.2)."""

from ...configuration.ladder import LadderConfig, LadderDINOv3Config, LadderEVA02Config
from .model import LadderForUniversalSegmentation

__all__ = ["LadderConfig", "LadderDINOv3Config", "LadderEVA02Config", "LadderForUniversalSegmentation"]
