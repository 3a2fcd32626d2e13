"""`eomt benchmark --calibrate-merging`: which threshold of token merging costs a model nothing (paper, Table 9)."""

from dataclasses import asdict, dataclass

from transformers import AutoImageProcessor

from ..configuration import TASK_ROWS
from ..evaluate import evaluation_data
from ..inference.loading import load_for_inference
from ..inference.writing import require_free, write_json
from ..training.data import EvaluationTransform
from ..training.evaluation import evaluate_model
from .flops import CountedModel

ALLOWED_LOSS = 0.1
"""Percentage points of the metric."""
COARSE = (0.98, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.3, 0.0)
"""Thresholds that are tried one after the other until one loses more; the interval it ends is then halved."""
RESOLUTION = 0.005


@dataclass
class Row:
    """One threshold's result."""

    threshold: float | None
    "None: no merging."
    gflops: float
    "Of one image on average, all windows, by the tokens really left."
    percent: float
    "The task's metric."


def calibrate(args) -> int:
    """Evaluate without merging and at falling thresholds; print the table and the lowest one that loses nothing."""
    if args.json:
        require_free(args.json, args.force)
    (name,) = args.model
    model = load_for_inference(name, args.device, masked=bool(args.masked))
    model.set_token_merging(layers=args.merging_layers, threshold=1.0)  # wrong layers are refused before the evaluation
    processor = AutoImageProcessor.from_pretrained(name)
    task = processor.task
    data, space = evaluation_data(args.data, task, model, dataset=args.dataset, ignore_ids=args.ignore_ids)
    data = data.with_transform(EvaluationTransform(space, task=task))
    metric = TASK_ROWS[task]

    def measure(threshold: float | None) -> Row:
        model.set_token_merging(layers=args.merging_layers, threshold=threshold)
        counted = CountedModel(model)
        result = evaluate_model(counted, processor, data, task=task, label_space=space, batch_size=args.batch_size)
        row = Row(threshold, counted.flops / len(data) / 1e9, 100 * result[metric.metric_key])
        print(_line(row), flush=True)
        return row

    print(f"{'threshold':>9}  {'GFLOPs':>9}  {metric.metric:>6}")
    rows, found = search(measure)
    print(conclusion(found, rows[0], metric.metric))
    if args.json:
        chosen = found and found.threshold
        setting = {"model": name, "data": str(args.data), "images": len(data), "layers": list(args.merging_layers)}
        write_json(args.json, setting | {"threshold": chosen, "rows": [asdict(row) for row in rows]}, indent=2)
    return 0


def search(measure) -> tuple[list[Row], Row | None]:
    """`measure(threshold) -> Row` → all rows, by falling threshold, and the last one before the metric suffers.

    The metric need not fall evenly: all coarse thresholds above the one found lose no more than allowed.
    """
    base = measure(None)
    rows, good, bad = [base], None, None

    def lossless(row: Row) -> bool:
        return base.percent - row.percent <= ALLOWED_LOSS + 1e-9

    for threshold in COARSE:
        rows.append(measure(threshold))
        if not lossless(rows[-1]):
            bad = rows[-1]
            break
        good = rows[-1]
    while bad is not None and (good.threshold if good else 1.0) - bad.threshold > RESOLUTION:
        rows.append(measure(round(((good.threshold if good else 1.0) + bad.threshold) / 2, 4)))
        good, bad = (rows[-1], bad) if lossless(rows[-1]) else (good, rows[-1])
    return [base, *sorted(rows[1:], key=lambda row: -row.threshold)], good


def conclusion(found: Row | None, base: Row, metric: str) -> str:
    if found is None:
        return f"every threshold that was tried loses more than {ALLOWED_LOSS} {metric}; leave token merging off"
    saved = 100 * (1 - found.gflops / base.gflops)
    loss = base.percent - found.percent
    return (
        f"--token-merging {found.threshold:g}: {saved:.0f} % fewer multiply-adds, {loss:.2f} {metric} lost "
        f"(at most {ALLOWED_LOSS} allowed)"
    )


def _line(row: Row) -> str:
    threshold = "off" if row.threshold is None else f"{row.threshold:g}"
    return f"{threshold:>9}  {row.gflops:9.2f}  {row.percent:6.2f}"
