"""`eomt predict` on the `photos` and `models` of conftest.py."""

from eomt.cli import main

SIZES = {"000000000139": (40, 60), "000000000285": (64, 64), "000000000632": (90, 30)}
STUFF = [3, 4]


def predict(photos, model, output, *options):
    return main(["predict", str(photos), "--model", str(model), "--output", str(output), "--workers", "0", *options])
