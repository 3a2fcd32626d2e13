"""Prediction files in the formats of the reference tools: COCO panoptic (PNG and JSON), COCO instance results (RLE),
and label PNG. Any number of processes write them image by image, atomically, and skip finished images.

    OUTPUT/panoptic/NAME.png  panoptic.json    ids R + 256 G + 65536 B from 1, 0 is void
    OUTPUT/instances.json                      [{"image_id", "category_id", "segmentation", "bbox", "score"}, …]
    OUTPUT/labels/NAME.png                     category id of each pixel, 8 or 16 bit
    OUTPUT/confidence/NAME.png                 semantic, optional: floor(65535 · confidence), 16 bit
    OUTPUT/images.json                         {"images", "categories"}: ids, names, sizes; "path": file of the image
    OUTPUT/records/NAME.json                   the entries of an image for the JSON files; written last, as the mark of
                                               a finished image. "source": its file; a changed one is segmented again
    OUTPUT/run.json                            settings of the run; a run with other settings is refused

Category ids are those of the label space (COCO's 1 … 200, Cityscapes' 7 … 33), otherwise the labels of the model. The
id of an image is the number in its file name, otherwise the name. `eomt evaluate` matches images by file name, and
`eomt train --more-data OUTPUT` reads the folder as data.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as rle
from scipy import ndimage

from .configuration.labels import VOID_VALUES, LabelSpace
from .image_processing.images import id_to_rgb
from .image_processing.resampling import BAND
from .training.files import read_json, write_atomic, write_json


class Results:
    """Writes the predictions of one run to a folder.

    Args:
        output: the folder, created if missing.
        task: "panoptic", "instance" or "semantic".
        label_space: names and category ids of the labels.
        run: settings (model, thresholds, …).

    Raises:
        ValueError: if the folder holds the results of a run with other settings.
    """

    def __init__(self, output: str | Path, task: str, label_space: LabelSpace, run: Mapping | None = None):
        self.output, self.task, self.label_space = Path(output), task, label_space
        run = {"task": task, **(run or {})}
        marker = self.output / "run.json"
        if marker.is_file():
            before = read_json(marker)
            for key in {**before, **run}:
                if before.get(key) != run.get(key):
                    raise ValueError(
                        f"{self.output} holds the results of a run with {key} {before.get(key)!r}, not "
                        f"{run.get(key)!r}; choose another output folder or delete this one"
                    )
        else:
            write_json(marker, run)

    def path(self, folder: str, name: str, suffix: str) -> Path:
        return self.output / folder / f"{name}{suffix}"

    def needs(self, name: str, image_id: int | str, source: Mapping) -> bool:
        """Whether an image has no results yet. Discards those of another version of its file (see `file_state`)."""
        if not self._has_record(name):
            return True
        record = self._record(name)
        if record["source"] == source and record["image"]["id"] == image_id:
            return False
        self.path("records", name, ".json").unlink()
        return True

    def write(self, name: str, file_name: str, prediction: Mapping, image_id=None, source: Mapping | None = None):
        """Write the prediction for one image.

        Args:
            name: of the result files, without suffix; may contain folders.
            file_name: file name of the image in the JSON files.
            prediction: result of `predict_image`.
            source: result of `file_state`, for `needs`.
        """
        image_id = image_id_from_name(name) if image_id is None else image_id
        category_ids = self.label_space.dataset_ids
        annotations = []
        if self.task == "panoptic":
            coded, segments = panoptic_png(prediction["segmentation"], prediction["segments_info"], category_ids)
            size = coded.shape[:2]
            write_atomic(self.path("panoptic", name, ".png"), Image.fromarray(coded).save)
            annotations.append({"image_id": image_id, "file_name": f"{name}.png", "segments_info": segments})
        elif self.task == "instance":
            size = prediction["size"]
            annotations = instance_results(image_id, prediction, category_ids)
        else:
            size = prediction["segmentation"].shape
            labels = label_png(prediction["segmentation"], category_ids)
            write_atomic(self.path("labels", name, ".png"), labels.save)
            if "confidence" in prediction:
                confidence = confidence_png(prediction["confidence"])
                write_atomic(self.path("confidence", name, ".png"), confidence.save)
        image = {"id": image_id, "file_name": file_name, "height": int(size[0]), "width": int(size[1])}
        if source is not None:
            image["path"] = source["file"]
        if self.task == "semantic":
            image["sem_seg_file_name"] = f"labels/{name}.png"
        record = {"image": image, "annotations": annotations, "source": source}
        write_json(self.path("records", name, ".json"), record)

    def finish(self, names: Iterable[str]) -> None:
        """Join the records of these images to the JSON files. Called by one process, after all have written."""
        names = [name for name in names if self._has_record(name)]
        listing = {"images": [self._record(n)["image"] for n in names], "categories": self.label_space.categories}
        write_json(self.output / "images.json", listing)
        annotations = (entry for name in names for entry in self._record(name)["annotations"])
        if self.task == "panoptic":
            head = json.dumps(listing)[:-1] + ', "annotations": '
            write_atomic(self.output / "panoptic.json", lambda part: _stream(part, head, annotations, "}"))
        elif self.task == "instance":
            write_atomic(self.output / "instances.json", lambda part: _stream(part, "", annotations, ""))

    def _has_record(self, name: str) -> bool:
        try:
            return self.path("records", name, ".json").is_file()
        except OSError:  # the name is too long for the file system; `write` raises
            return False

    def _record(self, name: str) -> dict:
        return read_json(self.path("records", name, ".json"))


def image_id_from_name(name: str) -> int | str:
    """The number of a name of digits, as in COCO (142238 for "000000142238"). Any other name is its own id."""
    return int(name) if name.isdecimal() else name


def image_ids_by_name(names: Iterable[str]) -> dict[str, int | str]:
    """{name: id} for the names of a run. Names of the same number ("1" and "01") are their own ids, as strings."""
    ids = {name: image_id_from_name(name) for name in names}
    uses = Counter(ids.values())
    return {name: i if uses[i] == 1 else name for name, i in ids.items()}


def file_state(file: Path | str) -> dict:
    """Path, size and modification time of a file, to recognize a changed file. Of a URL only the address."""
    if isinstance(file, str):
        return {"file": file}
    stat = file.stat()
    return {"file": str(file.resolve()), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def panoptic_png(segmentation, segments_info: Sequence[Mapping], category_ids: Sequence[int]):
    """Encode (H, W) ids in COCO's format: (H, W, 3) uint8 and `segments_info`. Ids start at 1; 0 is void."""
    ids = np.asarray(segmentation)
    coded = np.zeros((*ids.shape, 3), np.uint8)
    boxes = segment_boxes(ids)
    segments = []
    for number, info in enumerate(segments_info, start=1):
        rows, columns = boxes.get(info["id"], (slice(0, 0), slice(0, 0)))
        inside = ids[rows, columns] == info["id"]
        for channel, value in enumerate(id_to_rgb(np.array(number))):  # an index array would take 8 bytes per pixel
            np.copyto(coded[rows, columns, channel], value, where=inside)
        entry = {
            "id": number,
            "category_id": int(category_ids[info["label_id"]]),
            "iscrowd": 0,
            "area": int(np.count_nonzero(inside)),
            "bbox": [int(v) for v in (columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)],
        }
        if "score" in info:
            entry["score"] = float(info["score"])
        segments.append(entry)
    return coded, segments


def instance_results(image_id, prediction: Mapping, category_ids: Sequence[int]) -> list[dict]:
    """COCO results of encoded masks with labels and scores, without empty masks."""
    results = []
    for mask, label, score in zip(prediction["masks"], prediction["labels"], prediction["scores"]):
        if rle.area(mask):
            results.append({
                "image_id": image_id,
                "category_id": int(category_ids[int(label)]),
                "segmentation": {"size": [int(v) for v in mask["size"]], "counts": mask["counts"].decode("ascii")},
                "bbox": [float(v) for v in rle.toBbox(mask)],
                "score": float(score),
            })  # fmt: skip
    return results


def label_png(segmentation, category_ids: Sequence[int]) -> Image.Image:
    """Encode (H, W) labels as an image of category ids with 8 or 16 bits. Void is 255 or 65535.

    If an id needs more than 16 bits, the image is RGB, R + 256 G + 65536 B, and void is white.
    """
    labels, highest = np.asarray(segmentation), max(category_ids)
    num_bytes = next(size for size, void in VOID_VALUES.items() if highest < void or size == 3)
    values = np.array([*category_ids, VOID_VALUES[num_bytes]])  # [-1] is void
    table = id_to_rgb(values) if num_bytes == 3 else values.astype(f"u{num_bytes}")
    coded = np.empty((*labels.shape, *table.shape[1:]), table.dtype)
    for top in range(0, len(labels), BAND):
        band = labels[top : top + BAND]
        coded[top : top + BAND] = table[np.where((band >= 0) & (band < len(category_ids)), band, -1)]
    return Image.fromarray(coded)


def confidence_png(confidence) -> Image.Image:
    """Encode (H, W) confidences in [0, 1] as a 16-bit image of floor(65535 · confidence), the format of BRAVO."""
    values = np.asarray(confidence)
    coded = np.empty(values.shape, np.uint16)
    for top in range(0, len(values), BAND):
        coded[top : top + BAND] = np.floor(values[top : top + BAND].astype(np.float64) * 65535)
    return Image.fromarray(coded)


def segment_boxes(ids: np.ndarray) -> dict[int, tuple[slice, slice]]:
    """{id: (rows, columns)} around each segment of an (H, W) map of ids; void is negative."""
    boxes: dict[int, tuple[slice, slice]] = {}
    for top in range(0, len(ids), BAND):
        band = ids[top : top + BAND].astype(np.int32) + 1
        for number, found in enumerate(ndimage.find_objects(band)):
            if found is None:
                continue
            rows, columns = found
            first_row, left, right = top + rows.start, columns.start, columns.stop
            if number in boxes:
                rows_above, columns_above = boxes[number]
                first_row = rows_above.start
                left, right = min(left, columns_above.start), max(right, columns_above.stop)
            boxes[number] = (slice(first_row, top + rows.stop), slice(left, right))
    return boxes


def _stream(path: Path, head: str, entries: Iterable[dict], tail: str) -> None:
    """Write a JSON list between `head` and `tail`, entry by entry: the masks of a data set may not fit in memory."""
    with path.open("w", encoding="utf-8") as file:
        file.write(head + "[")
        for i, entry in enumerate(entries):
            file.write((",\n" if i else "\n") + json.dumps(entry))
        file.write("\n]" + tail)
