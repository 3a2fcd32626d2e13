"""A synthetic data set in COCO panoptic format: things (four shapes) over stuff (four textures).

It has the difficulties of real data: objects overlap and are cut off by the border; each class has a usual hue, but
hues overlap, so that shape or texture decides; sizes and aspect ratios vary; every pixel has noise. Image i of a seed
is the same for any number of images.
"""

import colorsys
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from tqdm.auto import tqdm

from ...image_processing.images import id_to_rgb

THINGS = ("circle", "square", "triangle", "star")
STUFF = ("stripes", "checks", "speckle", "gradient")
USUAL_HUE = {  # fraction of the color circle; a few percent of the things have a hue closer to another class
    **{"circle": 0.0, "square": 0.25, "triangle": 0.5, "star": 0.75},
    **{"stripes": 0.11, "checks": 0.0, "speckle": 0.33, "gradient": 0.58},  # sand, brick, grass, sky; paler
}
CATEGORIES = [
    {"id": i, "name": name, "supercategory": "thing" if name in THINGS else "stuff", "isthing": int(name in THINGS)}
    for i, name in enumerate((*THINGS, *STUFF), 1)
]
OUTLINES = {  # distance of the corners from the center, at equal angles, as a fraction of the radius
    "circle": np.ones(40),
    "square": np.full(4, 1.1),
    "triangle": np.full(3, 1.25),
    "star": np.tile([1.3, 0.5], 5),
}
MIN_PIXELS = 24  # visible pixels of a segment; a smaller one is unrecognizable and becomes void


def make_shapes(
    folder: str | Path, *, train: int = 1000, val: int = 100, size: tuple[int, int] = (72, 112), seed: int = 0
) -> Path:
    """Write `train` and `val` images with their annotations into a folder, and return the folder.

    Files are `{train,val}/*.png`, `annotations/panoptic_{train,val}.json` and the PNGs of the latter in the folder of
    the same name. `size` is the range of the sides of an image, in pixels.
    """
    folder = Path(folder)
    for split, count, first in (("train", train, 0), ("val", val, 1_000_000)):
        pngs = folder / "annotations" / f"panoptic_{split}"
        pngs.mkdir(parents=True, exist_ok=True)
        (folder / split).mkdir(exist_ok=True)
        images, annotations = [], []
        for i in tqdm(range(first, first + count), desc=f"shapes, {split}", leave=False, disable=count < 200):
            pixels, ids, segments = draw(np.random.default_rng((seed, i)), size)
            name = f"{i:07d}.png"
            Image.fromarray(pixels).save(folder / split / name)
            Image.fromarray(id_to_rgb(ids)).save(pngs / name)
            images.append({"id": i, "file_name": name, "height": ids.shape[0], "width": ids.shape[1]})
            annotations.append({"image_id": i, "file_name": name, "segments_info": segments})
        data = {"images": images, "annotations": annotations, "categories": CATEGORIES}
        (folder / "annotations" / f"panoptic_{split}.json").write_text(json.dumps(data))
    return folder


def draw(rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, list[dict]]:
    """One image of 1 to 4 things: uint8 (H, W, 3), ids int32 (H, W) with 0 for void, and COCO `segments_info`.

    `size` is the range of the sides, in pixels.
    """
    height, width = rng.integers(size[0], size[1] + 1, 2)
    classes = rng.permutation(len(STUFF))[: rng.integers(1, 4)]  # stuff classes of this image, one segment each
    regions = _regions(rng, height, width, len(classes))  # [H, W] index into classes
    image = np.zeros((height, width, 3), np.float32)
    ids = np.zeros((height, width), np.int32)
    category = {}  # {segment id: category id}
    for i, stuff in enumerate(classes):
        inside = regions == i
        number = len(THINGS) + int(stuff) + 1
        image[inside] = _texture(rng, STUFF[stuff], height, width)[inside]
        ids[inside] = number
        category[number] = number
    for number in range(rng.integers(1, 5)):
        thing = int(rng.integers(len(THINGS)))
        reach = rng.uniform(0.16, 0.34) * min(height, width)
        center = rng.uniform(0.08, 0.92, 2) * (width, height)
        mask = _mask(THINGS[thing], center, reach, rng.uniform(-0.5, 0.5), rng.uniform(0.75, 1.0), height, width)
        hue = (USUAL_HUE[THINGS[thing]] + rng.normal(0, 0.07)) % 1
        color = np.array(colorsys.hsv_to_rgb(hue, rng.uniform(0.75, 1), rng.uniform(0.75, 1)))
        image[mask] = color * rng.uniform(0.85, 1.0)
        ids[mask] = 100 + number
        category[100 + number] = thing + 1
    image = Image.fromarray((image * 255).round().astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.5))
    noisy = np.asarray(image, np.float32) + rng.normal(0, rng.uniform(2, 10), (height, width, 3))
    segments = []
    for i, area in zip(*np.unique(ids, return_counts=True)):
        if area < MIN_PIXELS:
            ids[ids == i] = 0
        else:
            segments.append({"id": int(i), "category_id": category[int(i)], "area": int(area), "iscrowd": 0})
    return noisy.clip(0, 255).round().astype(np.uint8), ids, segments


def _regions(rng, height: int, width: int, count: int) -> np.ndarray:
    """Regions 0 … count−1, (H, W): bands of different widths across a random direction, with a wavy border."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    along = (x / width - 0.5) * np.cos(angle) + (y / height - 0.5) * np.sin(angle)
    across = (y / height - 0.5) * np.cos(angle) - (x / width - 0.5) * np.sin(angle)
    along += 0.04 * np.sin(across * rng.uniform(6, 14) + rng.uniform(0, 6))
    cuts = np.quantile(along, np.sort(rng.uniform(0.25, 0.75, count - 1)))
    return np.searchsorted(cuts, along.ravel()).reshape(height, width)


def _texture(rng, name: str, height: int, width: int) -> np.ndarray:
    """A texture (H, W, 3) in 0 … 1: two muted colors mixed by the pattern."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    angle, period = rng.uniform(0, 2 * np.pi), rng.uniform(6, 12)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    if name == "stripes":
        mix = (np.floor(2 * u / period) % 2).astype(np.float32)
    elif name == "checks":
        mix = ((np.floor(2 * u / period) + np.floor(2 * v / period)) % 2).astype(np.float32)
    elif name == "speckle":
        mix = (rng.uniform(size=(height, width)) < 0.35).astype(np.float32)
    else:
        mix = (u - u.min()) / (u.max() - u.min())
    hue, value = (USUAL_HUE[name] + rng.normal(0, 0.04)) % 1, rng.uniform(0.3, 0.6)
    dark = np.array(colorsys.hsv_to_rgb(hue, rng.uniform(0.2, 0.5), value))
    light = np.array(colorsys.hsv_to_rgb(hue, rng.uniform(0.1, 0.4), value + rng.uniform(0.25, 0.4)))
    return dark + mix[..., None] * (light - dark)


def _mask(name: str, center, radius: float, angle: float, squeeze: float, height: int, width: int) -> np.ndarray:
    """The mask of a shape, bool (H, W), rotated and squeezed along one axis."""
    reach = OUTLINES[name]
    turn = np.arange(len(reach)) * 2 * np.pi / len(reach)
    points = np.stack([np.cos(turn) * reach, np.sin(turn) * reach * squeeze], -1)  # [points, (x, y)]
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    outline = (points @ rotation) * radius + center
    canvas = Image.new("1", (int(width), int(height)))
    ImageDraw.Draw(canvas).polygon([tuple(p) for p in outline.tolist()], fill=1)
    return np.array(canvas, bool)
