"""Segments with outlines, names and a legend over the photo.

H, W the image · n segments · s the factor that small images are enlarged by, so that lines and names stay fine
"""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from ..configuration.labels import IGNORE_INDEX
from ..inference.encoding import EncodedMasks
from .colors import Color, class_colors, shade
from .masks import SegmentMask, segment_masks
from .sheets import make_font

_SHORT_SIDE = 480
"""Images with a shorter side are enlarged by a whole factor before drawing (pixels)."""
_BAND_PIXELS = 2**21
"""Pixels that are tinted at once."""
_INSIDE = 0.72
"""Share of a name's box that must lie in its segment; names that fit nowhere are left to the legend."""


def draw_segments(
    image: Image.Image,
    segmentation,
    segments_info: Sequence[Mapping] | None = None,
    id2label: Mapping[int, str] | None = None,
    *,
    opacity: float = 0.45,
    names: bool = True,
    legend: bool = False,
    ignore_index: int = IGNORE_INDEX,
    colors: Mapping[int, Color] | None = None,
) -> Image.Image:
    """Photo, its segmentation → photo with tinted, outlined and named segments.

    Args:
        segmentation: (H, W) ids with `segments_info`; (n, H, W) masks or a list of n, one for each of `segments_info`;
            or (H, W) class labels without it (−1 and `ignore_index` are void).
        segments_info: `{"id", "label_id", "score" (optional)}`, as the post-processing gives them.
        id2label: class names; numbers without.
        names: write them where they fit inside their segment.
        legend: add a list of the classes with their share of the picture.
        colors: {label: (r, g, b)}; give `class_colors` of all labels to pictures that are to be compared.

    Raises:
        ValueError: if the segmentation is of another size than the image.
    """
    segmentation = segmentation if isinstance(segmentation, Sequence) else np.asarray(segmentation)
    masks = segment_masks(segmentation, segments_info, ignore_index)
    labels = [mask.label for mask in masks]
    image = image.convert("RGB")
    if masks and masks[0].shape != image.size[::-1]:
        height, width = masks[0].shape
        raise ValueError(f"segmentation of {height} × {width} does not fit its image of {image.height} × {image.width}")
    factor = max(1, round(_SHORT_SIDE / max(1, min(image.size)))) if max(image.size) < 2 * _SHORT_SIDE else 1
    if factor > 1:
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC)
    canvas = np.array(image)  # [H s, W s, 3]
    line = max(2, round(min(canvas.shape[:2]) / 260))
    order = sorted(range(len(masks)), key=lambda k: -masks[k].area)  # small segments over large ones
    of_class = {**class_colors(labels), **(colors or {})}
    tints = [shade(of_class[c], labels[:k].count(c)) for k, c in enumerate(labels)]  # instances differ in shade
    for k in order:
        _tint(canvas, masks[k], np.asarray(tints[k], np.float32), opacity, line, factor)
    total = canvas.shape[0] * canvas.shape[1] / factor**2
    picture = Image.fromarray(canvas)
    del canvas
    name_of = {c: str(id2label.get(c, c)) if id2label else str(c) for c in set(labels)}
    if names:
        _write_names(picture, masks, [name_of[c] for c in labels], tints, order, factor)
    if legend and masks:
        rows = {}
        for mask, c in zip(masks, labels):
            rows[c] = rows.get(c, 0.0) + mask.area / total
        rows = sorted(rows.items(), key=lambda row: -row[1])
        picture = _with_legend(picture, [(name_of[c], of_class[c], share) for c, share in rows])
    return picture


def draw_prediction(
    image: Image.Image, prediction, id2label: Mapping[int, str] | None = None, step: int = 1, **options
) -> Image.Image:
    """`draw_segments` of what `eomt.inference.post_process` gives, or of a metric's reference.

    Args:
        step: the image is this factor smaller than the prediction.
    """
    if not isinstance(prediction, Mapping):  # a semantic reference
        prediction = {"segmentation": np.asarray(prediction)}
    if "masks" in prediction:
        segmentation = EncodedMasks(prediction["masks"], step)
        info = [{"id": k, "label_id": int(label)} for k, label in enumerate(prediction["labels"])]
    else:
        segmentation, info = prediction["segmentation"][::step, ::step], prediction.get("segments_info")
    return draw_segments(image, segmentation, info, id2label, **options)


def _tint(canvas: np.ndarray, mask: SegmentMask, color: np.ndarray, opacity: float, line: int, factor: int) -> None:
    """Blend the color into the mask, opaque along its outline, with a fine light edge outside of that.

    In bands of rows, each with so many rows around it that its outline is that of the mask.
    """
    rows, columns = mask.box
    pixels = mask.pixels()
    height, band = len(pixels) * factor, max(64, _BAND_PIXELS // (pixels.shape[1] * factor))
    left, right = columns.start * factor, columns.stop * factor
    for top in range(0, height, band):
        bottom = min(top + band, height)
        first, last = max(0, top - line - 1), min(height, bottom + line + 1)
        part = pixels[first // factor : -(-last // factor)].repeat(factor, 0).repeat(factor, 1)
        part = part[first % factor : first % factor + last - first]
        part = np.pad(part, ((int(first == 0), int(last == height)), (1, 1)))
        start = top - first + int(first == 0)
        depth = ndimage.distance_transform_cdt(part, "chessboard")[start : start + bottom - top, 1:-1]  # to the outside
        area = canvas[rows.start * factor + top : rows.start * factor + bottom, left:right]
        weight = (np.where(depth > line, opacity, 0.9) * (depth > 0)).astype(np.float32)
        blended = area + weight[..., None] * (color - area)
        blended += np.float32(0.55) * (depth == 1)[..., None] * (255 - blended)
        area[:] = blended.round()


def _write_names(picture: Image.Image, masks, texts, tints, order, factor: int) -> None:
    """Each name once, in a rounded box inside its segment, largest segments first; none over another."""
    draw = ImageDraw.Draw(picture, "RGBA")
    base = max(12, round(min(picture.size) / 30))
    taken: list[tuple[int, int, int, int]] = []
    for k in order:
        for size in (base, round(base * 0.8), round(base * 0.65)):
            font = make_font(max(10, size))
            left, top, right, bottom = font.getbbox(texts[k])
            width, height = right - left + font.size, bottom - top + round(font.size * 0.6)
            spot = _place(masks[k], width / factor, height / factor)
            if spot is None:
                continue
            y, x = spot[0] * factor, spot[1] * factor
            box = (round(x - width / 2), round(y - height / 2), round(x + width / 2), round(y + height / 2))
            if any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
                continue
            taken.append(box)
            dark = tuple(int(v * 0.28) for v in tints[k])
            draw.rounded_rectangle(box, radius=font.size // 3, fill=(*dark, 215))
            draw.text((x, y), texts[k], (255, 255, 255, 255), font, anchor="mm")
            break


def _place(mask: SegmentMask, width: float, height: float) -> tuple[float, float] | None:
    """Center (y, x) of a box of width × height that lies inside the mask as far as possible; `None` if too little."""
    rows, columns = mask.box
    part = mask.pixels()
    if mask.area < _INSIDE * width * height:
        return None
    step = max(1, max(part.shape) // 160)
    small = np.pad(part[::step, ::step], 1).astype(np.float32)
    size = (max(1, round(height / step)), max(1, round(width / step)))
    inside = ndimage.uniform_filter(small, size, mode="constant")
    depth = ndimage.distance_transform_edt(small > 0)
    y, x = np.unravel_index(np.argmax(inside + depth / depth.max() * 0.25), inside.shape)
    y_image, x_image = rows.start + (y - 0.5) * step, columns.start + (x - 0.5) * step
    fits = height / 2 <= y_image <= mask.shape[0] - height / 2 and width / 2 <= x_image <= mask.shape[1] - width / 2
    return (y_image, x_image) if inside[y, x] >= _INSIDE and fits else None


def _with_legend(picture: Image.Image, rows: list[tuple[str, Color, float]]) -> Image.Image:
    """Swatch, name and share of each class, in columns under the picture."""
    font = make_font(max(12, round(min(picture.size) / 34)))
    line = round(font.size * 1.7)
    texts = [f"{name}  {share:.0%}" if share >= 0.005 else f"{name}  <1%" for name, _, share in rows]
    cell = min(picture.width, round(max(font.getlength(t) for t in texts) + 2.8 * font.size))
    columns = max(1, picture.width // cell)
    height = -(-len(rows) // columns) * line + font.size
    sheet = Image.new("RGB", (picture.width, picture.height + height), "white")
    sheet.paste(picture, (0, 0))
    draw = ImageDraw.Draw(sheet)
    for i, (text, (_, color, _)) in enumerate(zip(texts, rows)):
        x = (i % columns) * cell + font.size // 2
        y = picture.height + font.size // 2 + (i // columns) * line + line // 2
        half = font.size // 2
        draw.rounded_rectangle((x, y - half, x + 2 * half, y + half), half // 2, color)
        draw.text((x + 2 * half + half, y), text, "black", font, anchor="lm")
    return sheet
