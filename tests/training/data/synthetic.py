"""Small data sets for tests, in their formats: images, label PNGs, JSON, archives."""

import io
import json
import zipfile
from copy import deepcopy
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

SIZE = (12, 16)  # H, W of every synthetic image


def picture(seed: int = 0, size=SIZE, kind: str = "JPEG") -> bytes:
    rng = np.random.default_rng(seed)
    return encoded(Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)), kind)


def png(array: np.ndarray) -> bytes:
    return encoded(Image.fromarray(array.astype(np.uint8)), "PNG")


def panoptic_png(ids: np.ndarray) -> bytes:
    return png(np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1))


def encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def write(root: Path, files: dict[str, bytes | str | dict]) -> Path:
    """Write files below a folder; dictionaries and lists as JSON."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_bytes(content))
    return root


def zipped(files: dict[str, bytes | str | dict]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, _bytes(content))
    return buffer.getvalue()


def _bytes(content) -> bytes:
    if isinstance(content, dict | list):
        content = json.dumps(content)
    return content.encode() if isinstance(content, str) else content


CATEGORIES = [
    {"id": 18, "name": "dog", "isthing": 1},
    {"id": 1, "name": "person", "isthing": 1},
    {"id": 119, "name": "flower", "isthing": 0},
]


def panoptic_ids() -> np.ndarray:
    """Void, a dog with an id of three bytes, a crowd of persons, flowers."""
    ids = np.zeros(SIZE, np.int64)
    ids[2:6, 2:8] = 70000
    ids[2:6, 8:14] = 5
    ids[6:] = 300
    return ids


def panoptic_json() -> dict:
    segments = [
        {"id": 300, "category_id": 119, "area": 96, "iscrowd": 0},
        {"id": 70000, "category_id": 18, "area": 24, "iscrowd": 0},
        {"id": 5, "category_id": 1, "area": 24, "iscrowd": 1},
    ]
    return {
        "images": [image(10, "000000000010.jpg"), image(9, "000000000009.jpg")],
        "annotations": [
            {"image_id": 10, "file_name": "000000000010.png", "segments_info": segments},
            {"image_id": 9, "file_name": "000000000009.png", "segments_info": []},
        ],
        "categories": deepcopy(CATEGORIES),
    }


def image(number: int, name: str) -> dict:
    return {"id": number, "file_name": name, "height": SIZE[0], "width": SIZE[1]}


def instance_json() -> dict:
    """An image with a polygon, a compressed and an uncompressed RLE (the crowd), and an image without segments."""
    rows = np.zeros(SIZE, np.uint8)
    rows[:, :2] = 1
    compressed = coco_mask.encode(np.asfortranarray(rows))
    area = SIZE[0] * SIZE[1]
    return {
        "images": [image(10, "000000000010.jpg"), image(9, "000000000009.jpg")],
        "annotations": [
            annotation(1, 18, [[2, 2, 8, 2, 8, 6, 2, 6]], area=24.5),
            annotation(2, 1, {"size": list(SIZE), "counts": compressed["counts"].decode()}, area=24),
            annotation(3, 1, {"size": list(SIZE), "counts": [area - 5, 5]}, iscrowd=1, area=5),
        ],
        "categories": deepcopy(CATEGORIES[:2]),
    }


def annotation(number: int, category: int, segmentation, image_id: int = 10, **more) -> dict:
    return {"id": number, "image_id": image_id, "category_id": category, "segmentation": segmentation, **more}


PNGS = {
    "panoptic_val2017/000000000010.png": panoptic_png(panoptic_ids()),
    "panoptic_val2017/000000000009.png": panoptic_png(np.zeros(SIZE, int)),
    "__MACOSX/._panoptic_val2017": b"",
}
IMAGES = {"val2017/000000000010.jpg": picture(10), "val2017/000000000009.jpg": picture(9)}


def extracted(root):
    inner = {f"annotations/{name}": content for name, content in PNGS.items() if not name.startswith("__")}
    annotations = {
        "annotations/panoptic_val2017.json": panoptic_json(),
        "annotations/instances_val2017.json": instance_json(),
    }
    return write(root, IMAGES | inner | annotations)


def label_ids() -> np.ndarray:
    """Every id from 0 to 33, and 255."""
    values = np.resize(np.arange(34), SIZE)
    values[-1, -1] = 255
    return values


def cityscapes(root, as_zip: bool = False):
    images, ground_truth = {}, {}
    for split, city in (("train", "aachen"), ("train", "bochum"), ("val", "munster"), ("test", "bonn")):
        stem = f"{split}/{city}/{city}_000000_000019"
        images[f"leftImg8bit/{stem}_leftImg8bit.png"] = picture(kind="PNG")
        ground_truth[f"gtFine/{stem}_gtFine_labelIds.png"] = png(label_ids())
        ground_truth[f"gtFine/{stem}_gtFine_instanceIds.png"] = png(label_ids())
        ground_truth[f"gtFine/{stem}_gtFine_polygons.json"] = "{}"
    if as_zip:
        archives = {"leftImg8bit_trainvaltest.zip": images, "gtFine_trainvaltest.zip": ground_truth}
        return write(root, {name: zipped(files) for name, files in archives.items()})
    return write(root, images | ground_truth)
