"""A prediction as files: the overlay, COCO json, the label png; the formats of `eomt predict`, one image each."""

from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as rle

from ..configuration.labels import LabelSpace
from ..inference.encoding import instance_results, label_png, panoptic_png
from ..training.files import write_atomic, write_json
from ..visualization.sheets import write_jpeg
from .views import overlay


def write_files(folder: Path, name: str, view: str, prediction: dict, image: Image.Image, config) -> list[Path]:
    """→ overlay.jpg, .json and .png, named after the photo.

    The png of a panoptic view holds segment ids (R + 256 G + 65536 B, 0 is void), of an instance view instance numbers
    from 1 (0 is none, the best on top), of others category ids. The json is COCO's: `annotations` of instances have
    run-length encoded masks.
    """
    space = LabelSpace.from_config(config)
    entry = {"id": 1, "file_name": name, "width": image.width, "height": image.height}
    stem = Path(name).stem or "photo"
    files = [folder / f"{stem}.overlay.jpg", folder / f"{stem}.json", folder / f"{stem}.png"]
    if view == "panoptic":
        coded, segments = panoptic_png(prediction["segmentation"], prediction["segments_info"], space.dataset_ids)
        annotations = [{"image_id": 1, "file_name": files[2].name, "segments_info": segments}]
        picture = Image.fromarray(coded)
    elif view == "instance":
        annotations = instance_results(1, prediction, space.dataset_ids)
        for number, annotation in enumerate(annotations, 1):
            annotation |= {"id": number, "iscrowd": 0, "area": int(rle.area(annotation["segmentation"]))}
        numbers = np.zeros((image.height, image.width), np.uint16)
        for number in range(len(annotations), 0, -1):
            numbers[rle.decode(annotations[number - 1]["segmentation"]).astype(bool)] = number
        picture = Image.fromarray(numbers)
    else:
        entry["sem_seg_file_name"] = files[2].name
        annotations, picture = [], label_png(prediction["segmentation"], space.dataset_ids)
    drawn = overlay(view, prediction, image, dict(config.id2label)).convert("RGB")
    write_jpeg(files[0], drawn)
    write_json(files[1], {"images": [entry], "categories": space.categories, "annotations": annotations}, indent=1)
    write_atomic(files[2], picture.save)
    return files
