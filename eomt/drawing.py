"""Drawing: segments with outlines, names and a legend over the image; panels side by side.

H, W image · n segments · s integer factor that enlarges small images, for fine lines and names
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as rle
from scipy import ndimage

from .configuration.labels import IGNORE_INDEX, VOID_VALUES
from .results import segment_boxes
from .training.files import write_atomic

Color = tuple[int, int, int]
SHORT_SIDE = 480  # pixels; images with a shorter side are enlarged by an integer factor before drawing
BAND_PIXELS = 2**21  # tinted in one step
NAME_INSIDE = 0.72  # least share of a name's box inside its segment; other names are in the legend only
NAME_AREA = 0.25  # largest share of a segment under its name, so that small objects stay visible
SHEET_WIDTH = 8000  # pixels; widest panel: one of 1 × 3000 is not enlarged to 480 × 1.4 million
JPEG_SIDE = 65500  # pixels; longest side of a JPEG file


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
    """Draw tinted, outlined and named segments over an image.

    Args:
        segmentation: with `segments_info`, (H, W) ids, or (n, H, W) masks in the order of `segments_info`, also as a
            list. Without it, (H, W) class labels. −1 is void, and `ignore_index`, or 65535 where that is a class.
        segments_info: `{"id", "label_id", "score" (optional)}`, as returned by the post-processing.
        id2label: class names; by default the labels themselves.
        names: write the names that fit inside their segments. Several segments of a single class are not named.
        legend: list the classes under the image, with the number of segments, or the share of the image for class
            labels. Without segments it reads "nothing found".
        colors: {label: (r, g, b)}. For images to be compared, give the `class_colors` of all their labels.

    Raises:
        ValueError: if the segmentation does not have the size of the image.
    """
    segmentation = segmentation if isinstance(segmentation, Sequence) else np.asarray(segmentation)
    if ignore_index in (id2label or ()):
        ignore_index = VOID_VALUES[2]  # as in `LabelSpace`
    masks = segment_masks(segmentation, segments_info, ignore_index)
    image = image.convert("RGB")
    if masks and masks[0].shape != image.size[::-1]:
        height, width = masks[0].shape
        raise ValueError(f"segmentation of {height} × {width} does not fit the image of {image.height} × {image.width}")
    factor = max(1, round(SHORT_SIDE / min(image.size))) if max(image.size) < 2 * SHORT_SIDE else 1
    if factor > 1:
        image = image.resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC)
    canvas = np.array(image)  # [H s, W s, 3]
    class_color = {**class_colors(mask.label for mask in masks), **(colors or {})}
    tints = segment_colors([mask.label for mask in masks], class_color)
    line = max(2, round(min(canvas.shape[:2]) / 260))
    order = sorted(range(len(masks)), key=lambda k: -masks[k].area)  # small segments over large ones
    for k in order:
        _tint(canvas, masks[k], np.asarray(tints[k], np.float32), opacity, line, factor)
    image = Image.fromarray(canvas)
    name_of = {label: str((id2label or {}).get(label, label)) for label in class_color}
    counts = Counter(mask.label for mask in masks)
    differs_by_instance = len(counts) == 1 and len(masks) > 1  # the colors of one class, see `segment_colors`
    if names and not differs_by_instance:
        _write_names(image, [(masks[k], name_of[masks[k].label], tints[k]) for k in order], factor)
    if legend:
        rows = []
        for label, count in counts.most_common():
            if segments_info is None:
                share = sum(mask.area for mask in masks if mask.label == label) / np.prod(masks[0].shape)
                percent = f"{share:.0%}" if share >= 0.005 else "<1%"
                text = f"{name_of[label]} {percent}"
            else:
                text = f"{count} × {name_of[label]}"
            rows.append((text, None if differs_by_instance else class_color[label]))
        image = _with_legend(image, rows or [("nothing found", None)])
    return image


def draw_prediction(
    image: Image.Image, prediction, id2label: Mapping[int, str] | None = None, step: int = 1, **options
) -> Image.Image:
    """`draw_segments` for a result of `predict_image`, or for the ground truth of a metric.

    Args:
        step: size of the prediction divided by the size of the image.
    """
    if not isinstance(prediction, Mapping):  # a semantic reference
        prediction = {"segmentation": np.asarray(prediction)}
    if "masks" in prediction:
        segmentation = EncodedMasks(prediction["masks"], step)
        info = [{"id": k, "label_id": int(label)} for k, label in enumerate(prediction["labels"])]
    else:
        segmentation, info = prediction["segmentation"][::step, ::step], prediction.get("segments_info")
    return draw_segments(image, segmentation, info, id2label, **options)


def draw_confidence(confidence) -> Image.Image:
    """Heat map of (H, W) confidences in [0, 1]; unsure pixels are dark (paper, Fig. B)."""
    from matplotlib import colormaps

    values = np.asarray(confidence, np.float32).clip(0, 1)
    return Image.fromarray((colormaps["inferno"](values)[..., :3] * 255).round().astype(np.uint8))


def side_by_side(panels: Sequence[tuple[str, Image.Image]], height: int = 480, gap: int = 12) -> Image.Image:
    """Join (title, image) panels on white, titles above. All have one height (pixels), smaller if one is very wide."""
    font = make_font(max(14, height // 26))
    for _, panel in panels:
        height = max(1, min(height, SHEET_WIDTH * panel.height // panel.width))
    scaled = [p.convert("RGB").resize((max(1, round(p.width * height / p.height)), height)) for _, p in panels]
    head = font.size + 2 * gap
    sheet = Image.new("RGB", (sum(p.width for p in scaled) + gap * (len(scaled) + 1), height + head + gap), "white")
    draw, left = ImageDraw.Draw(sheet), gap
    for (title, _), panel in zip(panels, scaled):
        draw.text((left + panel.width / 2, head / 2), title, "black", font, anchor="mm")
        sheet.paste(panel, (left, head))
        left += panel.width + gap
    return sheet


def write_jpeg(path: Path, image: Image.Image) -> None:
    """Write a JPEG file, scaled down to the longest side that the format allows."""
    longest = max(image.size)
    if longest > JPEG_SIDE:
        image = image.resize([max(1, side * JPEG_SIDE // longest) for side in image.size])
    write_atomic(path, lambda part: image.save(part, quality=92))


# --- colors ----------------------------------------------------------------------------------------------------------

_TINTS = """
    1793ff bcc849 9f3c8a 00b1bf ffa54b 6256c0 17af43 ff92a9 0074b4 b88c00
    e49efd 00846b ed5f19 8dbbff 507800 e257a4 00d6f5 9d5500 a073f6 54db9b
    b3363d 0099fc c9c43e 993f95 00b3b0 ffa158 545ac2 49ac27 ff92b6 0078ac
"""
PALETTE: list[Color] = [tuple(bytes.fromhex(tint)) for tint in _TINTS.split()]
"""30 tints in three lightnesses. Hues are a golden angle apart, so that neighbors look different."""
_CLOSE = 60  # RGB distance below which two tints over an image look the same


def class_colors(labels: Iterable[int]) -> dict[int, Color]:
    """{label: color} for the labels of one image, or of several images to be compared.

    Each label has a color of its own. If it is too close to one in use, the label takes the color farthest from these.
    """
    tints = np.array(PALETTE)
    chosen: dict[int, Color] = {}
    for label in sorted(set(labels)):
        place = label % len(PALETTE)
        if chosen:
            gaps = np.linalg.norm(tints[:, None] - np.array(list(chosen.values())), axis=-1).min(1)  # [30]
            if gaps[place] < _CLOSE:
                place = int(gaps.argmax())
        chosen[label] = PALETTE[place]
    return chosen


def segment_colors(labels: Sequence[int], class_color: Mapping[int, Color]) -> list[Color]:
    """The color of each segment: that of its class, in another shade for each further instance.

    Several segments of a single class take the colors of the palette in order.
    """
    if len(labels) > 1 and len(set(labels)) == 1:
        return [PALETTE[k % len(PALETTE)] for k in range(len(labels))]
    seen: Counter = Counter()
    colors = []
    for label in labels:
        share = (0.0, 0.35, -0.35, 0.18, -0.18)[seen[label] % 5]
        colors.append(tuple(round(v + share * ((255 - v) if share > 0 else v)) for v in class_color[label]))
        seen[label] += 1
    return colors


# --- one mask per segment, from any form of segmentation -------------------------------------------------------------

_KEPT_PIXELS = 2**18  # of the box of a mask that stays in memory; larger ones are read again for drawing
_MANY_IDS = 2**16  # larger ids are located one by one: a table of COCO's ids could have 2²⁴ rows


class EncodedMasks(Sequence):
    """Run-length encoded masks, decoded on access: (H, W) arrays of every `step`-th row and column."""

    def __init__(self, encoded: Sequence[dict], step: int = 1):
        self.encoded, self.step = encoded, step

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index: int) -> np.ndarray:
        return rle.decode(self.encoded[index])[:: self.step, :: self.step].copy()


class SegmentMask:
    """Box, area and pixels of a segment. Large masks are not kept: those of all segments may not fit in memory.

    Args:
        read: read(rows, columns) returns a part of the mask (bool).
        shape: (H, W) of the image.
        box: rows and columns around the mask; by default all are searched.
    """

    def __init__(self, read: Callable[[slice, slice], np.ndarray], label: int, shape, box=None):
        self.read, self.label, self.shape = read, int(label), shape
        searched = box or (slice(0, shape[0]), slice(0, shape[1]))
        pixels = read(*searched)
        self.area, self.box, self._kept = int(np.count_nonzero(pixels)), None, None
        if self.area:
            rows, columns = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
            inner = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
            self.box = tuple(slice(a.start + b.start, a.start + b.stop) for a, b in zip(searched, inner))
            if pixels[inner].size <= _KEPT_PIXELS:
                self._kept = pixels[inner].copy()

    def pixels(self) -> np.ndarray:
        """The mask inside its box."""
        return self.read(*self.box) if self._kept is None else self._kept


def segment_masks(segmentation, segments_info, ignore_index: int) -> list[SegmentMask]:
    """Masks and labels of the segments that are not empty. Arguments as for `draw_segments`."""

    def of_id(segment: int) -> Callable:
        return lambda rows, columns: segmentation[rows, columns] == segment

    def of_stack(k: int) -> Callable:
        return lambda rows, columns: np.asarray(segmentation[k])[rows, columns].astype(bool)

    if segments_info is None:
        bands = [np.unique(segmentation[top : top + 256]) for top in range(0, len(segmentation), 256)]
        present = np.unique(np.concatenate(bands)).astype(int).tolist()
        labels = [label for label in present if label >= 0 and label != ignore_index]
        masks = [SegmentMask(of_id(label), label, segmentation.shape) for label in labels]
    elif isinstance(segmentation, Sequence) or segmentation.ndim == 3:
        shape = np.shape(segmentation[0]) if segments_info else ()
        masks = [SegmentMask(of_stack(k), info["label_id"], shape) for k, info in enumerate(segments_info)]
    else:
        small = segmentation.max(initial=0) < _MANY_IDS and segmentation.min(initial=0) >= -1
        boxes = segment_boxes(segmentation) if small else {}
        masks = [
            SegmentMask(of_id(info["id"]), info["label_id"], segmentation.shape, boxes.get(info["id"]))
            for info in segments_info
        ]
    return [mask for mask in masks if mask.area]


# --- on the canvas ---------------------------------------------------------------------------------------------------


def _tint(canvas: np.ndarray, mask: SegmentMask, color: np.ndarray, opacity: float, line: int, factor: int) -> None:
    """Blend the color into the mask: opaque along the outline, with a fine light edge around it.

    Works in bands of rows. A margin of rows around each band has the outline of the mask nearby.
    """
    rows, columns = mask.box
    pixels = mask.pixels()
    height, band = len(pixels) * factor, max(64, BAND_PIXELS // (pixels.shape[1] * factor))
    left, right = columns.start * factor, columns.stop * factor
    for top in range(0, height, band):
        bottom = min(top + band, height)
        first, last = max(0, top - line - 1), min(height, bottom + line + 1)
        part = pixels[first // factor : -(-last // factor)].repeat(factor, 0).repeat(factor, 1)
        part = part[first % factor : first % factor + last - first]
        above, below = int(first == 0), int(last == height)  # rows of background around the box
        part = np.pad(part, ((above, below), (1, 1)))
        start = top - first + above
        depth = ndimage.distance_transform_cdt(part, "chessboard")[start : start + bottom - top, 1:-1]  # background: 0
        area = canvas[rows.start * factor + top : rows.start * factor + bottom, left:right]
        weight = (np.where(depth > line, opacity, 0.9) * (depth > 0)).astype(np.float32)
        blended = area + weight[..., None] * (color - area)
        blended += np.float32(0.55) * (depth == 1)[..., None] * (255 - blended)
        area[:] = blended.round()


def _write_names(image: Image.Image, named: Sequence[tuple[SegmentMask, str, Color]], factor: int) -> None:
    """Write each name in a rounded box inside its segment, largest segments first, without overlaps."""
    draw = ImageDraw.Draw(image, "RGBA")
    base = max(12, round(min(image.size) / 30))
    taken: list[tuple[int, int, int, int]] = []
    for mask, text, tint in named:
        for size in (base, round(base * 0.8), round(base * 0.65)):
            font = make_font(max(10, size))
            left, top, right, bottom = font.getbbox(text)
            width, height = right - left + font.size, bottom - top + round(font.size * 0.6)
            spot = _name_place(mask, width / factor, height / factor)
            if spot is None:
                continue
            y, x = spot[0] * factor, spot[1] * factor
            box = (round(x - width / 2), round(y - height / 2), round(x + width / 2), round(y + height / 2))
            if any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
                continue
            taken.append(box)
            dark = tuple(int(v * 0.28) for v in tint)
            draw.rounded_rectangle(box, radius=font.size // 3, fill=(*dark, 215))
            draw.text((x, y), text, (255, 255, 255, 255), font, anchor="mm")
            break


def _name_place(mask: SegmentMask, width: float, height: float) -> tuple[float, float] | None:
    """Center (y, x) of the box with the largest share in the mask, in the image; `None` if no box fits."""
    if width * height > NAME_AREA * mask.area:
        return None
    rows, columns = mask.box
    part = mask.pixels()
    step = max(1, max(part.shape) // 160)
    small = np.pad(part[::step, ::step], 1).astype(np.float32)
    if not small.any():  # a thin mask between the sampled pixels
        return None
    size = (max(1, round(height / step)), max(1, round(width / step)))
    inside = ndimage.uniform_filter(small, size, mode="constant")
    depth = ndimage.distance_transform_edt(small > 0)
    y, x = np.unravel_index(np.argmax(inside + depth / depth.max() * 0.25), inside.shape)
    y_image, x_image = rows.start + (y - 0.5) * step, columns.start + (x - 0.5) * step
    fits = height / 2 <= y_image <= mask.shape[0] - height / 2 and width / 2 <= x_image <= mask.shape[1] - width / 2
    return (y_image, x_image) if inside[y, x] >= NAME_INSIDE and fits else None


def _with_legend(image: Image.Image, rows: list[tuple[str, Color | None]]) -> Image.Image:
    """Add (text, color) rows in columns under the image. Rows with a color begin with a swatch."""
    font = make_font(max(12, round(min(image.size) / 34)))
    line, half = round(font.size * 1.7), font.size // 2
    cell = min(image.width, round(max(font.getlength(text) for text, _ in rows) + 2.8 * font.size))
    columns = max(1, image.width // cell)
    height = -(-len(rows) // columns) * line + font.size
    sheet = Image.new("RGB", (image.width, image.height + height), "white")
    sheet.paste(image, (0, 0))
    draw = ImageDraw.Draw(sheet)
    for i, (text, color) in enumerate(rows):
        x = (i % columns) * cell + half
        y = image.height + half + (i // columns) * line + line // 2
        if color is not None:
            draw.rounded_rectangle((x, y - half, x + 2 * half, y + half), half // 2, color)
            x += 3 * half
        draw.text((x, y), text, "black", font, anchor="lm")
    return sheet


def make_font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans: it is part of matplotlib and has the letters of many scripts."""
    from matplotlib import font_manager

    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size)
