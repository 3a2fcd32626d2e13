"""The numbers the paper reports (EoMT, CVPR 2025), and those of the authors' model zoo: the rows of data/paper.csv.

`REPORTED` holds one `Reported` per printed result; `reported_for(recipe)` finds what a recipe should reach.
COCO and ADE20K are val splits. FPS: H100, batch 1, mixed precision, torch.compile (§4.1). GFLOPs: fvcore, one
multiply-add counted as one. Blanks in the paper are None here.
"""

import csv
from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True)
class Reported:
    """One printed result."""

    table: str
    "Where it is printed: a table of the paper, or `model zoo` (the authors' repository)."
    method: str
    backbone: str
    pretraining: str
    dataset: str
    "coco, ade20k, cityscapes or bravo."
    image_size: str
    "Pixels: `640²`, or `1024×2048`."
    metric: str
    value: float
    "Percent."
    parameters: float | None = None
    "Millions, the whole model."
    gflops: float | None = None
    "Per image, window crops included."
    fps: float | None = None
    "Images per second; of Table 9 at batch 32."
    recipe: str | None = None
    "Name of the recipe in `recipes.py` that trains this model."
    note: str = ""


def _value(text: str) -> float | str | None:
    try:
        return int(text) if text.isdecimal() else float(text)
    except ValueError:
        return text or None


def _read(row: dict[str, str]) -> Reported:
    return Reported(**{name: _value(text) for name, text in row.items()} | {"note": row["note"]})


_TEXT = files(__package__).joinpath("data", "paper.csv").read_text(encoding="utf-8")
REPORTED: tuple[Reported, ...] = tuple(_read(row) for row in csv.DictReader(_TEXT.splitlines()))


def reported_for(recipe: str) -> Reported | None:
    """Recipe name → what the authors report for it; where two tables agree on a result, the one with more columns."""
    rows = [row for row in REPORTED if row.recipe == recipe]
    return max(rows, key=lambda row: (row.parameters is not None, row.table), default=None)
