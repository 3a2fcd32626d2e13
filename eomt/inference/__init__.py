"""Images in, segments out: the inference loop, exported models and their engines, image files, results on disk."""

from .segment import Segmented, confident_instances, iter_segments, post_process, segment

__all__ = ["Segmented", "confident_instances", "iter_segments", "post_process", "segment"]
