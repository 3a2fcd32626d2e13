"""A metric's result for people: a table of the main numbers, and a csv of the classes."""

import csv
import math
from pathlib import Path

from ...configuration import TASK_ROWS
from ...configuration.labels import LabelSpace

GROUPS = [("", ""), ("_things", " th"), ("_stuff", " st")]
_PQ = [("pq", "PQ"), ("sq", "SQ"), ("rq", "RQ")]
ROWS = {  # the table: the metric's keys and what papers call them
    "panoptic": [(key + group, name + short) for group, short in GROUPS for key, name in _PQ],
    "instance": [("ap", "AP"), ("ap_50", "AP50"), ("ap_75", "AP75")]
    + [(f"ap_{size}", f"AP {size[0].upper()}") for size in ("small", "medium", "large")],
    "semantic": [("mean_iou", "mIoU"), ("mean_accuracy", "mAcc"), ("overall_accuracy", "aAcc")],
}


def table(result: dict, task: str, reported: list[tuple[str, float]] = ()) -> str:
    """The metric's main numbers in percent, and beside them what the paper reports: [(where, percent), …]."""
    main = TASK_ROWS[task].metric_key
    suffixes = sorted({key.removeprefix(main) for key in result if key.startswith(f"{main}_block_")})
    lines = []
    for suffix in ("", *suffixes):
        cells = [(name, result[key + suffix]) for key, name in ROWS[task] if key + suffix in result]
        title = f"before block {suffix.rpartition('_')[2]}" if suffix else ""
        if not lines:
            lines.append("".join(f"{name:>9}" for name, _ in cells))
        lines.append("".join(f"{100 * v:9.2f}" if v == v and v >= 0 else f"{'–':>9}" for _, v in cells) + f"  {title}")
    lines += [f"{value:9.2f}  {where}" for where, value in reported]
    return "\n".join(line.rstrip() for line in lines)


def write_classes(result: dict, task: str, label_space: LabelSpace, path: Path) -> None:
    """`per_class.csv`: a line a class, fractions 0 … 1, blank where a class has neither ground truth nor prediction."""
    rows: list[dict] = []
    for label, name in enumerate(label_space.names):
        if task == "semantic":
            values = {"iou": result["per_category_iou"][label], "accuracy": result["per_category_accuracy"][label]}
        else:
            values = dict(result["per_class"][label])
            if task == "panoptic" and not values["tp"] + values["fp"] + values["fn"]:
                values |= dict.fromkeys(("pq", "sq", "rq"), math.nan)
        blank = {k: "" if isinstance(v, float) and (v != v or v < 0) else v for k, v in values.items()}
        rows.append({"label": label, "name": name, "dataset_id": label_space.dataset_ids[label]} | blank)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
