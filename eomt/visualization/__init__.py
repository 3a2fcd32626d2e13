"""Pictures for people: segments over the photo, panels side by side."""

from .colors import class_colors
from .overlays import draw_prediction, draw_segments
from .sheets import draw_confidence, side_by_side

__all__ = ["class_colors", "draw_confidence", "draw_prediction", "draw_segments", "side_by_side"]
