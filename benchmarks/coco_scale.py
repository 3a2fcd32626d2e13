"""A data set of COCO's size: seconds and memory to load its annotations, first and second time, and to compute AP.

118,287 images with 860,001 polygons in one json, as COCO's instances_train2017.json; empty image files. Average
precision keeps what 300 images with 100 detections each leave, repeated to the same number of images.
"""

import json
import os
import pickle
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

IMAGES, ANNOTATIONS, CLASSES = 118_287, 860_001, 80
MATCHED = 300


def make(folder: Path) -> int:
    """The data set; bytes of its json."""
    rng = np.random.default_rng(0)
    (folder / "train2017").mkdir(parents=True)
    (folder / "annotations").mkdir()
    images = [{"id": i, "file_name": f"{i:012d}.jpg", "height": 480, "width": 640} for i in range(1, IMAGES + 1)]
    for image in images:
        (folder / "train2017" / image["file_name"]).touch()
    path = folder / "annotations" / "instances_train2017.json"
    categories = [{"id": i, "name": f"class {i}", "supercategory": "thing"} for i in range(1, CLASSES + 1)]
    with path.open("w") as file:
        file.write(json.dumps({"images": images, "categories": categories})[:-1] + ', "annotations": [')
        for number in range(ANNOTATIONS):
            x, y = rng.integers(0, 400, 2).tolist()
            angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
            points = np.stack([x + 40 * np.cos(angles) + 40, y + 30 * np.sin(angles) + 30], 1).round(2)
            entry = {
                "id": number + 1,
                "image_id": number % IMAGES + 1,
                "category_id": number % CLASSES + 1,
                "iscrowd": 0,
            }
            entry |= {"area": 3700.0, "bbox": [x, y, 80, 60], "segmentation": [points.ravel().tolist()]}
            file.write((", " if number else "") + json.dumps(entry))
        file.write("]}")
    return path.stat().st_size


def peak() -> float:
    """GiB that this process had in use at most."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 2**20


def load(folder: str) -> None:
    from eomt.training.data import load_data

    before, started = peak(), time.perf_counter()
    table, space = load_data(folder, "coco", task="instance", split="train")
    seconds = time.perf_counter() - started
    assert (len(table), space.num_labels) == (IMAGES, CLASSES)
    assert len(table[IMAGES // 2]["segments"]) in (7, 8)
    print(f"{seconds:.1f} s, {peak() - before:.2f} GiB beyond the imports' {before:.2f}")


def average_precision() -> None:
    from eomt.training import MaskAveragePrecision

    rng, metric = np.random.default_rng(0), MaskAveragePrecision(num_labels=CLASSES)
    for i in range(MATCHED):
        masks = np.zeros((100, 120, 160), bool)
        for mask, y, x, height, width in zip(
            masks, *rng.integers([[0], [0], [5], [5]], [[90], [120], [40], [40]], (4, 100))
        ):
            mask[y : y + height, x : x + width] = True
        labels = rng.integers(0, CLASSES, 100)
        entry = {"masks": np.roll(masks, 2, 2), "labels": labels, "scores": rng.random(100)}
        annotated = {"masks": masks[:8], "labels": labels[:8], "iscrowd": [0] * 8, "image_id": i}
        metric.add_batch(predictions=[entry], references=[annotated])
    kept = metric.state["images"]
    size = len(pickle.dumps(kept)) / MATCHED
    copies = [pickle.dumps(matches) for *_, matches in kept]
    before = peak()
    metric.state["images"] = [(i, i, pickle.loads(copies[i % MATCHED])) for i in range(IMAGES)]
    held, started = peak() - before, time.perf_counter()
    result = metric.compute()
    print(
        f"{size / 1000:.1f} kB an image sent, {held:.2f} GiB for {IMAGES:,} images; computed in "
        f"{time.perf_counter() - started:.0f} s with {peak() - before - held:.2f} GiB more (AP {result['ap']:.3f})"
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "HF_DATASETS_CACHE": f"{folder}/cache"}
        size = make(Path(folder, "data"))
        print(f"{IMAGES:,} images, {ANNOTATIONS:,} annotations, {size / 1e6:.0f} MB of json", flush=True)
        load_data = f"from benchmarks.coco_scale import load; load({folder + '/data'!r})"
        for title, code in (
            ("first start", load_data),
            ("second start", load_data),
            ("average precision", "from benchmarks.coco_scale import average_precision; average_precision()"),
        ):
            done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{title}:\n{done.stderr}")
            print(f"{title + ':':<18} {done.stdout.splitlines()[-1]}", flush=True)


if __name__ == "__main__":
    main()
