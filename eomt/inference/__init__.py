"""Images in, segments out: the inference loop, exported models and their engines, image files, results on disk."""

from ..configuration.lazy_names import lazy_names
from .segment import Segmented, confident_instances, iter_segments, post_process, segment

__all__ = ["ExportedEoMT", "Segmented", "confident_instances", "iter_segments", "post_process", "segment"]
__getattr__, __dir__ = lazy_names(__name__, {"ExportedEoMT": "exported"})
