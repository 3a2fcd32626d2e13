"""What `eomt export` does: check the options, load the model, write the exported folder."""

from transformers import AutoImageProcessor

from .configuration import TASK_ROWS
from .configuration.sizes import parse_size
from .evaluate import evaluation_data
from .inference.export_folder import MAX_DROP, ExportOptions, export_folder, require_options
from .inference.exported import ExportedEoMT
from .inference.loading import load_model, require_model
from .training.data import EvaluationTransform
from .training.evaluation import evaluate_model
from .training.files import require_free, require_writable


def export(args) -> None:
    """Export by the options, `args` as the command's parser gives them."""
    size = parse_size(*args.image_size) if args.image_size else None
    require_free(args.output, args.force, args.model)
    require_writable(args.output.parent)
    options = ExportOptions(
        formats=tuple(dict.fromkeys(args.format)),
        precision=args.precision,
        calibrate=args.calibrate,
        calibration_images=args.calibration_images,
        max_drop=MAX_DROP if args.max_drop is None else args.max_drop,
        image=args.image,
        dynamic_size=args.dynamic_size,
    )
    require_options(options)
    require_model(args.model)
    processor = AutoImageProcessor.from_pretrained(args.model, **({"size": size} if size else {}))
    model = load_model(args.model, dtype="float32", **({"image_size": size} if size else {}))
    if isinstance(model, ExportedEoMT):
        raise ValueError(f"{args.model} is exported already; give an EoMT that save_pretrained wrote")
    score = _score(args, processor, model) if args.data else None
    export_folder(model, processor, args.output, options, score, args.force)


def _score(args, processor, model):
    """`model → (name, points)` of the task's metric on --data."""
    task, key = processor.task, TASK_ROWS[processor.task].metric_key
    data, space = evaluation_data(args.data, task, model, split=args.split or "val", ignore_ids=args.ignore_ids)
    data = data.with_transform(EvaluationTransform(space, task=task))

    def score(model) -> tuple[str, float]:
        result = evaluate_model(model, processor, data, task=task, label_space=space)
        return TASK_ROWS[task].metric, 100 * result[key]

    return score
