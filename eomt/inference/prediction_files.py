"""Predictions on disk, in the formats of the reference tools: COCO panoptic (png + json), COCO instance results (RLE),
label png. Written image by image, atomically, by any number of processes; what is done is not repeated.

    OUTPUT/panoptic/NAME.png  panoptic.json    ids R + 256 G + 65536 B from 1, 0 is void
    OUTPUT/instances.json                      [{"image_id", "category_id", "segmentation", "bbox", "score"}, …]
    OUTPUT/labels/NAME.png                     the class's id in each pixel, 8 or 16 bit
    OUTPUT/images.json                         {"images", "categories"}: names and ids of both
    OUTPUT/records/NAME.json                   one image's part of the json files, written last: marks it as done.
                                               "source": the image's file; if that changes, it is repeated
    OUTPUT/run.json                            the settings of the run; those of another run are refused

Category ids are the label space's own (COCO's 1..200, Cityscapes' 7..33), the model's labels where it has none. Image
ids are the numbers in the files' names or those names: photos say no more; `eomt evaluate` matches them by file name.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from PIL import Image

from ..configuration.labels import LabelSpace
from ..training.files import read_json, write_atomic, write_json
from .encoding import instance_results, label_png, panoptic_png


def image_id_from_name(name: str) -> int | str:
    """COCO's ids are the numbers in its file names: "000000142238" → 142238; any other name is its own id."""
    return int(name) if name.isdecimal() else name


def image_ids_by_name(names: Iterable[str]) -> dict[str, int | str]:
    """Names of one run → {name: id}; names that are the same number ("1" and "01") are their own ids, as strings."""
    ids = {name: image_id_from_name(name) for name in names}
    uses = Counter(ids.values())
    return {name: i if uses[i] == 1 else name for name, i in ids.items()}


def file_state(file: Path) -> dict:
    """What identifies a file and its version."""
    stat = file.stat()
    return {"file": str(file.resolve()), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def weight_files(model: str | Path) -> dict[str, list[int]]:
    """A local model directory's weight files: {name: [size, mtime_ns]}; none of a model on the hub."""
    suffixes = ("safetensors", "bin", "onnx")
    files = [file for suffix in suffixes for file in sorted(Path(model).glob(f"*.{suffix}"))]
    return {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in files}


class Results:
    """Writes one run's predictions under a folder.

    Args:
        output: the folder, created if missing.
        task: "panoptic", "instance" or "semantic".
        label_space: names and category ids of the labels.
        run: settings (model, thresholds, …); a folder with results of others is refused.

    Raises:
        ValueError: if the folder holds results of a run with other settings.
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
                        f"{self.output} holds results of a run with {key} {before.get(key)!r}, this one has "
                        f"{run.get(key)!r}; choose another output folder or delete that one"
                    )
        else:
            write_json(marker, run)

    def path(self, folder: str, name: str, suffix: str) -> Path:
        return self.output / folder / f"{name}{suffix}"

    def is_done(self, name: str) -> bool:
        try:
            return self.path("records", name, ".json").is_file()
        except OSError:  # a name too long for the file system: writing it will say so
            return False

    def discard_outdated(self, name: str, image_id: int | str, source: Mapping) -> None:
        """Forget that an image is done if its record is of another source file (see `file_state`) or has another id."""
        if self.is_done(name):
            record = self._record(name)
            if record.get("source") != source or record["image"]["id"] != image_id:
                self.path("records", name, ".json").unlink()

    def write(
        self, name: str, file_name: str, prediction, image_id: int | str | None = None, source: Mapping | None = None
    ) -> None:
        """One image's prediction. `name` may have folders in it; `file_name` is the image's, for the json; `source`
        the state of its file, for `discard_outdated`.

        prediction: of `segment` (see `post_process`).
        """
        image_id = image_id_from_name(name) if image_id is None else image_id
        ids = self.label_space.dataset_ids
        if self.task == "panoptic":
            coded, segments = panoptic_png(prediction["segmentation"], prediction["segments_info"], ids)
            size, png = coded.shape[:2], self.path("panoptic", name, ".png")
            write_atomic(png, Image.fromarray(coded).save)
            annotations = [{"image_id": image_id, "file_name": f"{name}.png", "segments_info": segments}]
        elif self.task == "instance":
            size = prediction["size"]
            annotations = instance_results(image_id, prediction, ids)
        else:
            labels = prediction["segmentation"]
            size, annotations = tuple(labels.shape), []
            write_atomic(self.path("labels", name, ".png"), label_png(labels, ids).save)
        image = {"id": image_id, "file_name": file_name, "height": int(size[0]), "width": int(size[1])}
        if self.task == "semantic":
            image["sem_seg_file_name"] = f"labels/{name}.png"
        record = {"image": image, "annotations": annotations, "source": source}
        write_json(self.path("records", name, ".json"), record)

    def finish(self, names: Iterable[str]) -> None:
        """Join the records of these images to the json files; one process calls it, after all have written."""
        names = [name for name in names if self.is_done(name)]
        categories = self.label_space.categories
        images = [self._record(name)["image"] for name in names]
        write_json(self.output / "images.json", {"images": images, "categories": categories})
        annotations = (entry for name in names for entry in self._record(name)["annotations"])
        if self.task == "panoptic":
            head = json.dumps({"images": images, "categories": categories})[:-1] + ', "annotations": '
            write_atomic(self.output / "panoptic.json", lambda part: _stream(part, head, annotations, "}"))
        elif self.task == "instance":
            write_atomic(self.output / "instances.json", lambda part: _stream(part, "", annotations, ""))

    def _record(self, name: str) -> dict:
        return read_json(self.path("records", name, ".json"))


def _stream(path: Path, head: str, entries: Iterable[dict], tail: str) -> None:
    """A json list written entry by entry: a data set's masks do not have to fit in memory."""
    with path.open("w", encoding="utf-8") as file:
        file.write(head + "[")
        for i, entry in enumerate(entries):
            file.write((",\n" if i else "\n") + json.dumps(entry))
        file.write("\n]" + tail)
