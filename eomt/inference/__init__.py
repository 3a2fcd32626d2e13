"""Images in, segments out: the inference loop, exported models and their engines, image files, results on disk."""

from .segment import Segmented, post_process, segment

__all__ = ["Segmented", "post_process", "segment"]
