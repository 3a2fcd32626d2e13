"""Images in, segments out: the inference loop, exported models and their engines, image files, results on disk."""

from ..configuration.lazy_names import lazy_names

__all__ = ["ExportedEoMT"]
__getattr__, __dir__ = lazy_names(__name__, {"ExportedEoMT": "exported"})
