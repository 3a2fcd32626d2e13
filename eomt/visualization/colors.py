"""Colors for classes: a class keeps its color from picture to picture, and classes of one picture look different."""

from collections.abc import Iterable
from functools import lru_cache

import numpy as np

Color = tuple[int, int, int]
_TO_LMS = np.array(
    [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]]
)
_TO_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)
_CLOSE = 0.1
"""Distance in OKLab below which two tints over a photo are taken for the same."""


def _rgb(lab: np.ndarray) -> Color:
    """OKLab (perceptual lightness, green-red, blue-yellow) → sRGB 0..255."""
    linear = (_TO_RGB @ (_TO_LMS @ lab) ** 3).clip(0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return tuple(int(v) for v in (encoded * 255).round())


@lru_cache(maxsize=1)
def _palette() -> np.ndarray:
    """30 tints in OKLab, in an order that puts unlike ones next to each other: (30, 3)."""
    tints = []
    for i in range(30):
        hue = 2 * np.pi * ((0.70 + i * 0.61803398875) % 1)
        lightness, chroma = ((0.66, 0.19), (0.80, 0.15), (0.52, 0.16))[i % 3]
        tints.append([lightness, chroma * np.cos(hue), chroma * np.sin(hue)])
    return np.array(tints)


def class_colors(labels: Iterable[int]) -> dict[int, Color]:
    """Labels of one picture (or of several to be compared) → a color for each.

    A label has its own place in the palette; where that is too close to one already taken, the farthest free one.
    """
    palette, chosen = _palette(), {}
    for label in sorted(set(labels)):
        lab = palette[label % len(palette)]
        if chosen:
            taken = np.array(list(chosen.values()))
            gaps = np.linalg.norm(palette[:, None] - taken[None], axis=-1).min(1)  # [30]
            if gaps[label % len(palette)] < _CLOSE:
                lab = palette[gaps.argmax()]
        chosen[label] = lab
    return {label: _rgb(lab) for label, lab in chosen.items()}


def shade(color: Color, instance: int) -> Color:
    """The `instance`-th shade of a color: lighter and darker in turn, the first as it is."""
    share = (0.0, 0.28, -0.28, 0.14, -0.14)[instance % 5]
    return tuple(round(v + share * ((255 - v) if share > 0 else v)) for v in color)
