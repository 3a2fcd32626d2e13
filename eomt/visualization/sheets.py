"""Panels side by side, heat maps, JPEG files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..training.files import write_atomic

_WIDEST = 8000
"""Panels side by side are at most so wide (pixels): one of 1 × 3000 is not enlarged to 480 × 1.4 million."""
_JPEG_SIDE = 65500
"""Longest side that a JPEG file can have (pixels)."""


def side_by_side(panels: Sequence[tuple[str, Image.Image]], height: int = 480, gap: int = 12) -> Image.Image:
    """(title, picture), … → one picture on white, all at one height (pixels; less if one is very wide), titles
    above."""
    font = make_font(max(14, height // 26))
    height = max(1, min([height, *(_WIDEST * p.height // p.width for _, p in panels)]))
    scaled = [p.convert("RGB").resize((max(1, round(p.width * height / p.height)), height)) for _, p in panels]
    head = font.size + 2 * gap
    sheet = Image.new("RGB", (sum(p.width for p in scaled) + gap * (len(scaled) + 1), height + head + gap), "white")
    draw, left = ImageDraw.Draw(sheet), gap
    for (title, _), picture in zip(panels, scaled):
        draw.text((left + picture.width / 2, head / 2), title, "black", font, anchor="mm")
        sheet.paste(picture, (left, head))
        left += picture.width + gap
    return sheet


def write_jpeg(path: Path, picture: Image.Image) -> None:
    """Picture → file, scaled down if it is longer than a JPEG can be."""
    longest = max(picture.size)
    if longest > _JPEG_SIDE:
        picture = picture.resize([max(1, side * _JPEG_SIDE // longest) for side in picture.size])
    write_atomic(path, lambda part: picture.save(part, quality=92))


def draw_confidence(confidence) -> Image.Image:
    """(H, W) in [0, 1] → heat map, dark where the model is unsure (paper Fig. B)."""
    from matplotlib import colormaps

    values = np.asarray(confidence, np.float32).clip(0, 1)
    return Image.fromarray((colormaps["inferno"](values)[..., :3] * 255).round().astype(np.uint8))


def make_font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans (it comes with matplotlib and has most scripts' letters)."""
    from matplotlib import font_manager

    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size)
