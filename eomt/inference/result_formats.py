"""What else `eomt predict` can write, made of its results: a table, COCO polygons, YOLO txt.

    OUTPUT/segments.csv                   a line a segment: image, class, score, area, box
    OUTPUT/polygons.json                  COCO annotations with polygons instead of run-length encoding
    OUTPUT/yolo/NAME.txt, data.yaml       class x1 y1 x2 y2 … in fractions of width and height (things only)

A polygon is the outline of one connected part; holes are filled, as these formats cannot say them.
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from PIL import Image
from pycocotools import mask as rle

from ..image_processing.maps import picture_ids
from .image_files import require_distinct
from .writing import read_json, write_atomic, write_json, write_text

SMALLEST = 3  # corners of a polygon
COLUMNS = ("image_id", "file_name", "category_id", "category", "score", "area", "x", "y", "width", "height")


@dataclass(frozen=True)
class Segment:
    """One segment of one image; `mask()` decodes it: (H, W) bool."""

    category: Mapping
    "id, name and isthing, as in the results."
    score: float | None
    area: int
    box: tuple[float, ...]
    "x, y, width, height in pixels."
    mask: Callable[[], np.ndarray]


def write_formats(output: Path, task: str, formats: list[str], threshold: float = 0.0) -> None:
    """Write the formats for everything that is in a folder of results (see `Results.finish`).

    Args:
        threshold: instances that score below are left out; the results themselves hold the best 100, likely or not.
    """
    listing = read_json(output / "images.json")
    categories = {category["id"]: category for category in listing["categories"]}
    if "yolo" in formats:
        require_distinct(listing["images"], ".txt")

    def segments(image: Mapping) -> Iterator[Segment]:
        return read_segments(output, task, image, categories, threshold)

    for name in formats:
        FORMATS[name](output, listing["images"], categories, segments)


def read_segments(
    output: Path, task: str, image: Mapping, categories: Mapping[int, Mapping], threshold: float
) -> Iterator[Segment]:
    """One image's segments, out of the results' own files; semantic: a segment for each class that is present.

    Instances that score below the threshold are left out.
    """
    if task == "semantic":
        labels = picture_ids(Image.open(output / image["sem_seg_file_name"]))
        for i in np.unique(labels).tolist():
            if i in categories:
                yield _present(categories[i], None, labels == i)
        return
    record = json.loads((output / "records" / f"{_record_name(image)}.json").read_text(encoding="utf-8"))
    for annotation in record["annotations"]:
        if task == "instance":
            if annotation["score"] < threshold:
                continue
            encoded = annotation["segmentation"] | {"counts": annotation["segmentation"]["counts"].encode()}
            area, box = int(rle.area(encoded)), tuple(annotation["bbox"])
            category = categories[annotation["category_id"]]
            yield Segment(category, annotation["score"], area, box, lambda e=encoded: rle.decode(e).astype(bool))
            continue
        ids = picture_ids(Image.open(output / "panoptic" / annotation["file_name"]))
        for info in annotation["segments_info"]:
            category, box = categories[info["category_id"]], tuple(info["bbox"])
            yield Segment(category, info.get("score"), info["area"], box, lambda ids=ids, i=info["id"]: ids == i)


def _record_name(image: Mapping) -> str:
    """The name behind an id of `image_ids_by_name`: the id itself, or of a number, the file's name without suffix."""
    return image["id"] if isinstance(image["id"], str) else str(Path(image["file_name"]).with_suffix(""))


def _present(category: Mapping, score: float | None, mask: np.ndarray) -> Segment:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = (columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1)
    return Segment(category, score, int(mask.sum()), tuple(float(v) for v in box), lambda: mask)


def polygons(mask: np.ndarray) -> list[list[float]]:
    """(H, W) bool → the outlines of its connected parts, [x1, y1, x2, y2, …] in pixels each, largest first."""
    from contourpy import FillType, contour_generator

    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return []
    part = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    generator = contour_generator(z=np.pad(part.astype(np.float32), 1), fill_type=FillType.OuterOffset)
    found = []
    for points, offsets in zip(*generator.filled(0.5, 2)):
        outer = points[: offsets[1] - 1].astype(float)  # the first ring is the outline; its last point is its first
        outer += (columns[0] - 0.5, rows[0] - 0.5)  # from indices of the padded part to edges of pixels
        if len(outer) >= SMALLEST:
            found.append(outer)
    found.sort(key=_area, reverse=True)
    return [outer.round(2).ravel().tolist() for outer in found]


def coco_annotations(images, segments: Callable, encode: Callable = polygons) -> list[dict]:
    """COCO's `annotations` of all images; `segments(image)` gives an image's.

    Args:
        encode: (H, W) bool → COCO's `segmentation`; a segment it gives nothing for, as it has no outline, is left out.
    """
    found = []
    for image in images:
        for s in segments(image):
            if segmentation := encode(s.mask()):
                entry = {"id": len(found) + 1, "image_id": image["id"], "category_id": s.category["id"]}
                entry |= {"segmentation": segmentation, "area": s.area, "bbox": list(s.box), "iscrowd": 0}
                found.append(entry | ({} if s.score is None else {"score": s.score}))
    return found


def _area(points: np.ndarray) -> float:
    x, y = points.T
    return abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1))) / 2


def _write_csv(output: Path, images, categories, segments) -> None:
    def write(part: Path) -> None:
        with part.open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(COLUMNS)
            for image in images:
                for s in segments(image):
                    score = "" if s.score is None else f"{s.score:.6f}"
                    rows.writerow(
                        [image["id"], image["file_name"], s.category["id"], s.category["name"], score, s.area, *s.box]
                    )

    write_atomic(output / "segments.csv", write)


def _write_polygons(output: Path, images, categories, segments) -> None:
    listed = {"images": images, "categories": list(categories.values())}
    write_json(output / "polygons.json", listed | {"annotations": coco_annotations(images, segments)})


def _write_yolo(output: Path, images, categories, segments) -> None:
    numbers = {i: number for number, i in enumerate(categories)}
    for image in images:
        scale, lines = np.array([image["width"], image["height"]]), []
        for s in segments(image):
            for outline in polygons(s.mask()) if s.category["isthing"] else ():
                points = np.array(outline).reshape(-1, 2) / scale
                lines.append(
                    " ".join([str(numbers[s.category["id"]]), *(f"{v:.6f}" for v in points.clip(0, 1).ravel())])
                )
        text = "".join(f"{line}\n" for line in lines)
        write_text((output / "yolo" / image["file_name"]).with_suffix(".txt"), text)
    names = {numbers[i]: category["name"] for i, category in categories.items()}
    write_text(output / "yolo" / "data.yaml", yaml.safe_dump({"names": names}, allow_unicode=True, sort_keys=False))


FORMATS = {"csv": _write_csv, "polygons": _write_polygons, "yolo": _write_yolo}
