"""`eomt predict --tile`: PQ with and without tiles on synthetic scenes full of small objects, memory, and the seams.

    python -m benchmarks.tiling [MODEL]     MODEL: folder of `make demo` (default runs/demo/model)

The scenes are the demo's with many small shapes, so the ground truth is known to the pixel. Scaled down to the model's
64 pixels, a shape has three to five; of the large picture, one or two.
"""

import resource
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from transformers import AutoImageProcessor

from eomt.inference.loading import load_model, require_model
from eomt.inference.segment import segment
from eomt.inference.tiles import cut
from eomt.inference.tiling import segment_tiles
from eomt.training.data.shapes import CATEGORIES, STUFF, THINGS, draw
from eomt.training.metrics import PanopticQuality

OVERLAPS = (0.0, 0.125, 0.25, 0.5)
LARGE, SIDE, OVERLAP = (9_000, 12_000), 640, 0.25
SEAM = 16
"""Pixels on both sides of a border between two tiles' cores."""


def scene(seed: int, side: int = 512, shapes: int = 60) -> tuple[Image.Image, dict]:
    """One picture with small shapes over large stretches of stuff: (picture, its panoptic ground truth)."""
    rng = np.random.default_rng(seed)
    pixels, ids, segments = draw(rng, (side, side), things=shapes, radius=(10 / side, 20 / side))
    label = {c["id"]: i for i, c in enumerate(CATEGORIES)}
    segments = [{"id": s["id"], "label_id": label[s["category_id"]], "iscrowd": 0} for s in segments]
    return Image.fromarray(pixels), {"segmentation": np.where(ids == 0, -1, ids), "segments_info": segments}


def large_scene() -> tuple[Image.Image, dict]:
    """A scene of 1,200 × 900 pixels, ten times enlarged: shapes of 200 to 400 pixels."""
    picture, reference = scene(seed=9, side=1200, shapes=150)
    factor = LARGE[1] // 1200
    ids = reference["segmentation"][: LARGE[0] // factor].astype(np.int32)
    picture = picture.crop((0, 0, 1200, LARGE[0] // factor)).resize(LARGE[::-1], Image.Resampling.BICUBIC)
    present = set(np.unique(ids).tolist())
    segments = [s for s in reference["segments_info"] if s["id"] in present]
    return picture, {"segmentation": ids.repeat(factor, 0).repeat(factor, 1), "segments_info": segments}


def quality(pairs) -> str:
    """(prediction, reference) pairs → "PQ, things, stuff" in percent."""
    metric = PanopticQuality(num_labels=len(CATEGORIES), stuff_label_ids=range(len(THINGS), len(THINGS) + len(STUFF)))
    for found, reference in pairs:
        metric.add_batch(predictions=[found], references=[reference])
    found = metric.compute()
    return " ".join(f"{100 * found[key]:5.1f}" for key in ("pq", "pq_things", "pq_stuff"))


def errors_at_seams(found: dict, reference: dict) -> tuple[float, float]:
    """Shares of pixels with a wrong class, near borders of tiles and elsewhere; void in the reference is left out."""
    rows, columns = (np.zeros(length, bool) for length in LARGE)
    for tile in cut(LARGE, SIDE, OVERLAP):
        for near, core in ((rows, tile.core_rows), (columns, tile.core_columns)):
            near[max(0, core.start - SEAM) : core.start + SEAM] |= core.start > 0
    tables = []
    for result in (found, reference):
        table = np.full(max(s["id"] for s in result["segments_info"]) + 2, -1)
        for segment_info in result["segments_info"]:
            table[segment_info["id"]] = segment_info["label_id"]
        tables.append(table)
    wrong, total = np.zeros(2), np.zeros(2)
    for row in range(LARGE[0]):
        ours, theirs = (t[np.asarray(r["segmentation"][row])] for t, r in zip(tables, (found, reference)))
        near = (columns | rows[row]).astype(int)
        counted = theirs >= 0
        total += np.bincount(near[counted], minlength=2)
        wrong += np.bincount(near[counted & (ours != theirs)], minlength=2)
    return wrong[1] / total[1], wrong[0] / total[0]


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    folder = next((name for name in sys.argv[1:] if Path(name, "config.json").is_file()), "runs/demo/model")
    if not Path(folder).is_dir():
        print(f"tiling: there is no {folder}; run make demo first")
        return
    require_model(folder)
    model, processor = load_model(folder).eval(), AutoImageProcessor.from_pretrained(folder)

    def whole(picture):
        return next(segment(model, processor, [picture])).prediction

    scenes = [scene(seed) for seed in range(4)]
    print("4 scenes of 512 × 512 with shapes of 20 to 40 pixels; PQ, things, stuff")
    print(f"{'whole image':28} {quality((whole(picture), reference) for picture, reference in scenes)}", flush=True)
    for share in OVERLAPS:
        found = (
            (segment_tiles(model, processor, picture, tile=64, overlap=share, batch_size=16), reference)
            for picture, reference in scenes
        )
        print(f"{f'tiles of 64, overlap {share:g}':28} {quality(found)}", flush=True)
    picture, reference = large_scene()
    before = peak_gib()
    found = segment_tiles(model, processor, picture, tile=SIDE, overlap=OVERLAP)
    after = peak_gib()
    print(f"{LARGE[1]:,} × {LARGE[0]:,} pixels, shapes of 200 to 400 pixels; PQ, things, stuff")
    print(f"{'whole image':28} {quality([(whole(picture), reference)])}", flush=True)
    print(f"{f'tiles of {SIDE}, overlap {OVERLAP:g}':28} {quality([(found, reference)])}")
    near, elsewhere = errors_at_seams(found, reference)
    print(f"wrong class: {100 * near:.2f} % within {SEAM} pixels of a seam, {100 * elsewhere:.2f} % elsewhere")
    print(f"peak memory with tiles {after:.2f} GiB; before, with the picture and its ground truth, {before:.2f} GiB")


if __name__ == "__main__":
    main()
