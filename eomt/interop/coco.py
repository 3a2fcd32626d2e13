"""Results of `eomt predict` → one COCO instances json, which FiftyOne, CVAT and Label Studio import.

    python -m eomt.interop.coco segments labels.json                    polygons, which all of them read
    python -m eomt.interop.coco segments labels.json --masks rle        exact masks, for FiftyOne, CVAT and pycocotools

Their importers ask for images {id, file_name, width, height}, categories {id, name} and annotations {id, image_id,
category_id, bbox, area, iscrowd, segmentation} with whole numbers as ids. Panoptic segments become one annotation each.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as rle

from eomt.inference.writing import atomic

MASKS = ("polygons", "rle")


def write_dataset(predictions: str | Path, target: str | Path, masks: str = "polygons", score: float = 0.5) -> int:
    """A folder that `eomt predict` wrote → a COCO json; the number of annotations.

    Args:
        masks: "polygons" (outlines; holes are lost) or "rle" (exact, compressed).
        score: instances below are left out; `eomt predict` keeps the best hundred of each image, likely or not.

    Raises:
        ValueError: for a folder without panoptic or instance results, or an unknown kind of masks.
    """
    folder, target = Path(predictions), Path(target)
    if masks not in MASKS:
        raise ValueError(f"masks is {masks!r}; choose from {', '.join(MASKS)}")
    panoptic, instances = folder / "panoptic.json", folder / "instances.json"
    if panoptic.is_file():
        data = json.loads(panoptic.read_text(encoding="utf-8"))
        found = _panoptic(data, folder / "panoptic")
    elif instances.is_file() and (folder / "images.json").is_file():
        data = json.loads((folder / "images.json").read_text(encoding="utf-8"))
        found = (one for one in json.loads(instances.read_text(encoding="utf-8")) if one["score"] >= score)
    else:
        raise ValueError(f"{folder} has neither panoptic.json nor instances.json; give what eomt predict wrote")
    numbers = {image["id"]: number for number, image in enumerate(data["images"], 1)}
    annotations = []
    for one in found:
        segmentation = one["segmentation"]
        entry = {"id": len(annotations) + 1, "image_id": numbers[one["image_id"]], "category_id": one["category_id"]}
        entry |= {"bbox": one["bbox"], "area": int(rle.area(segmentation)), "iscrowd": 0, "score": one["score"]}
        shapes = segmentation if masks == "rle" else outlines(rle.decode(segmentation))
        if shapes:
            annotations.append(entry | {"segmentation": shapes})
    images = [
        {"id": numbers[i["id"]], "file_name": i["file_name"], "width": i["width"], "height": i["height"]}
        for i in data["images"]
    ]
    categories = [{"id": c["id"], "name": c["name"], "supercategory": ""} for c in data["categories"]]
    with atomic(target, force=True) as part:
        part.write_text(json.dumps({"images": images, "categories": categories, "annotations": annotations}), "utf-8")
    return len(annotations)


def outlines(mask: np.ndarray) -> list[list[float]]:
    """(H, W) → COCO polygons [x1, y1, x2, y2, …], in pixel edges; pieces with fewer than three corners are left out."""
    import contourpy

    padded = np.pad(mask, 1).astype(np.float32)
    lines = contourpy.contour_generator(z=padded, name="serial").lines(0.5)
    polygons = []
    for line in lines:  # through pixel centers of the padded mask; outer outlines turn one way, holes the other
        x, y = line[:-1, 0] - 0.5, line[:-1, 1] - 0.5
        area = (x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2
        if len(x) > 2 and area > 0:
            polygons.append(np.stack([x, y], 1).round(2).ravel().tolist())
    return polygons


def _panoptic(data: dict, folder: Path):
    """COCO panoptic → instance results, one a segment."""
    for annotation in data["annotations"]:
        with Image.open(folder / annotation["file_name"]) as png:
            colors = np.asarray(png.convert("RGB"), np.uint32)
        ids = colors[..., 0] + 256 * colors[..., 1] + 65536 * colors[..., 2]
        for segment in annotation["segments_info"]:
            mask = rle.encode(np.asfortranarray((ids == segment["id"]).astype(np.uint8)))
            mask["counts"] = mask["counts"].decode("ascii")
            yield {
                "image_id": annotation["image_id"],
                "category_id": segment["category_id"],
                "bbox": segment["bbox"],
                "score": segment.get("score", 1.0),
                "segmentation": mask,
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("predictions", type=Path, help="folder that eomt predict wrote")
    parser.add_argument("target", type=Path, help="json to write")
    parser.add_argument("--masks", choices=MASKS, default="polygons")
    parser.add_argument("--score", type=float, default=0.5, help="leave out instances below (default 0.5)")
    args = parser.parse_args()
    count = write_dataset(args.predictions, args.target, args.masks, args.score)
    print(f"{count} annotations: {args.target}")


if __name__ == "__main__":
    main()
