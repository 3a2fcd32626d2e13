"""Results of `eomt predict` → one COCO json that FiftyOne, CVAT and Label Studio import.

    python -m eomt.interop.coco segments labels.json                    polygons, which all of them read
    python -m eomt.interop.coco segments labels.json --masks rle        exact masks, for FiftyOne, CVAT and pycocotools

A segment of any task is one annotation. What their importers ask for beyond COCO's fields:

    whole numbers as ids of images, from 1 as ids of categories     CVAT (datumaro) takes category 0 for "no class"
    a score for each annotation                                     Label Studio (label_studio_sdk.converter)
    polygons, as run-length encoding is not read                    Label Studio
"""

import argparse
from pathlib import Path

import numpy as np
from pycocotools import mask as rle

from ..inference.result_formats import coco_annotations, polygons, read_segments
from ..inference.writing import read_json, write_json


def write_dataset(predictions: str | Path, target: str | Path, masks: str = "polygons", score: float = 0.5) -> int:
    """A folder that `eomt predict` wrote → a COCO json; the number of annotations.

    Args:
        masks: "polygons" (outlines; holes are filled) or "rle" (exact, compressed).
        score: instances below are left out; `eomt predict` keeps the best hundred of each image, likely or not.

    Category ids are the results' own; where one of them is 0, all are one higher. Image ids are the results' own if
    they are numbers, otherwise 1, 2, … in their order.

    Raises:
        ValueError: for a folder without results, or an unknown kind of masks.
    """
    folder = Path(predictions)
    if masks not in ENCODINGS:
        raise ValueError(f"masks is {masks!r}; choose from {', '.join(ENCODINGS)}")
    if not all((folder / name).is_file() for name in ("images.json", "run.json")):
        raise ValueError(f"{folder} has no images.json and run.json; give a folder that eomt predict wrote")
    listing = read_json(folder / "images.json")
    task = read_json(folder / "run.json")["task"]
    categories = {category["id"]: category for category in listing["categories"]}

    def segments(image):
        return read_segments(folder, task, image, categories, score)

    annotations = coco_annotations(listing["images"], segments, ENCODINGS[masks])
    are_numbers = all(isinstance(image["id"], int) for image in listing["images"])
    image_ids = {image["id"]: image["id"] if are_numbers else k for k, image in enumerate(listing["images"], 1)}
    shift = int(0 in categories)
    for entry in annotations:
        entry |= {"image_id": image_ids[entry["image_id"]], "category_id": entry["category_id"] + shift}
        entry.setdefault("score", 1.0)
    images = [
        {"id": image_ids[i["id"]], "file_name": i["file_name"], "width": i["width"], "height": i["height"]}
        for i in listing["images"]
    ]
    names = [{"id": i + shift, "name": c["name"], "supercategory": ""} for i, c in categories.items()]
    write_json(Path(target), {"images": images, "categories": names, "annotations": annotations})
    return len(annotations)


def _encoded(mask: np.ndarray) -> dict | None:
    if not mask.any():
        return None
    found = rle.encode(np.asfortranarray(mask, np.uint8))
    return {"size": found["size"], "counts": found["counts"].decode("ascii")}


ENCODINGS = {"polygons": polygons, "rle": _encoded}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("predictions", type=Path, help="folder that eomt predict wrote")
    parser.add_argument("target", type=Path, help="json to write")
    parser.add_argument("--masks", choices=ENCODINGS, default="polygons")
    parser.add_argument("--score", type=float, default=0.5, help="leave out instances below (default 0.5)")
    args = parser.parse_args()
    try:
        count = write_dataset(args.predictions, args.target, args.masks, args.score)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(f"{count} annotations: {args.target}")


if __name__ == "__main__":
    main()
