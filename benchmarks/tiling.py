"""`eomt predict --tile`: PQ with and without tiles on synthetic scenes full of small objects, and peak memory.

    python -m benchmarks tiling [MODEL]     MODEL: folder of `make demo` (default runs/demo/model)

The scenes are the demo's with many small shapes, so the ground truth is known to the pixel. Scaled down to the model's
64 pixels, a shape has three to five.
"""

import resource
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor

from eomt.inference.loading import load_model, require_model
from eomt.inference.segment import segment
from eomt.inference.tiling import segment_tiles
from eomt.training.data.shapes import CATEGORIES, STUFF, THINGS, draw
from eomt.training.metrics import PanopticQuality

OVERLAPS = (0.0, 0.125, 0.25, 0.5)
LARGE = (9_000, 12_000)


def scene(seed: int, side: int = 512, shapes: int = 60) -> tuple[Image.Image, dict]:
    """One picture with small shapes over large stretches of stuff: (picture, its panoptic ground truth)."""
    rng = np.random.default_rng(seed)
    pixels, ids, segments = draw(rng, (side, side), things=shapes, radius=(10 / side, 20 / side))
    label = {c["id"]: i for i, c in enumerate(CATEGORIES)}
    segments = [{"id": s["id"], "label_id": label[s["category_id"]], "iscrowd": 0} for s in segments]
    return Image.fromarray(pixels), {"segmentation": np.where(ids == 0, -1, ids), "segments_info": segments}


def quality(model, processor, scenes, **tiles) -> dict:
    metric = PanopticQuality(num_labels=len(CATEGORIES), stuff_label_ids=range(len(THINGS), len(THINGS) + len(STUFF)))
    for picture, reference in scenes:
        if tiles:
            found = segment_tiles(model, processor, picture, batch_size=16, **tiles)
        else:
            found = next(segment(model, processor, [picture])).prediction
        metric.add_batch(predictions=[found], references=[reference])
    return metric.compute()


def main() -> None:
    folder = next((name for name in sys.argv[1:] if Path(name, "config.json").is_file()), "runs/demo/model")
    require_model(folder)
    model, processor = load_model(folder).eval(), AutoImageProcessor.from_pretrained(folder)
    scenes = [scene(seed) for seed in range(4)]
    print("4 scenes of 512 × 512 with shapes of 20 to 40 pixels; PQ, things, stuff")
    rows = [
        ("whole image", {}),
        *((f"tiles of 64, overlap {share:g}", {"tile": 64, "overlap": share}) for share in OVERLAPS),
    ]
    for name, tiles in rows:
        found = quality(model, processor, scenes, **tiles)
        print(
            f"{name:28} {100 * found['pq']:5.1f} {100 * found['pq_things']:5.1f} {100 * found['pq_stuff']:5.1f}",
            flush=True,
        )
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)).resize(LARGE[::-1])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = segment_tiles(model, processor, picture, tile=640, overlap=0.25)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"{LARGE[1]:,} × {LARGE[0]:,} pixels, tiles of 640: {len(found['segments_info'])} segments, peak "
        f"{after / 2**20:.2f} GiB ({before / 2**20:.2f} GiB before), torch threads {torch.get_num_threads()}"
    )


if __name__ == "__main__":
    main()
