"""Public names for inference: `ExportedEoMT` runs exported models, `infer` is the loop over images."""

from .engines import ExportedEoMT
from .image_processing.inference import Inferred, confident_instances, infer, iter_segments, predict_image

__all__ = ["ExportedEoMT", "Inferred", "confident_instances", "infer", "iter_segments", "predict_image"]
