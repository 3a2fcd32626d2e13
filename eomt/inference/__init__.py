"""Images in, segments out: the inference loop, image files, results in the standard formats."""

from .segment import Segmented, post_process, segment

__all__ = ["Segmented", "post_process", "segment"]
