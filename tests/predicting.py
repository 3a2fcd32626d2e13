"""Helpers for tests of `eomt predict`, also on the `photos` and `models` of conftest.py."""

import numpy as np
from PIL import Image

from eomt.cli import main

SIZES = {"000000000139": (40, 60), "000000000285": (64, 64), "000000000632": (90, 30)}
STUFF = [3, 4]


def predict(photos, model, output, *options):
    return main(["predict", str(photos), "--model", str(model), "--output", str(output), "--workers", "0", *options])


def write_photos(folder):
    """Write three small images, of SIZES."""
    folder.mkdir()
    for seed, (name, (height, width)) in enumerate(SIZES.items()):
        noise = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{name}.png")
    return folder
