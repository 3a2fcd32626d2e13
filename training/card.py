"""The model card of a run with its results, and the parts it shares with the cards of recipes (model_cards/make.py)."""

from collections.abc import Iterable

from ..configuration import TASK_ROWS, PMTConfig

PAPER = "[Your ViT is Secretly an Image Segmentation Model](https://arxiv.org/abs/2503.19108) (CVPR 2025)"
LIMITS = """- The model knows only the classes of its training data. Other objects become a similar class or nothing.
- Small objects are segmented less well: a patch is one token, and no pixel decoder adds finer details.
- Images should resemble the training data. For other cameras, views or places, fine-tune and check the results.
- Not tested for decisions about people or for safety-critical use."""


def front_matter(task: str, dataset: str | None, license_name: str | None = "apache-2.0") -> str:
    """The YAML header for the Hub."""
    lines = ["library_name: eomt", *([f"license: {license_name}"] if license_name else [])]
    lines.append("pipeline_tag: image-segmentation")
    tags = ["eomt", "image-segmentation", f"{task}-segmentation", *([dataset] if dataset else [])]
    return "\n".join(["---", *lines, f"tags: [{', '.join(tags)}]", "---"])


def table(header: Iterable[str], rows: Iterable[Iterable]) -> str:
    """A Markdown table, with – for None."""

    def text(cell) -> str:
        if cell is None:
            return "–"
        return f"{cell:,}" if isinstance(cell, int) else str(cell)

    header = list(header)
    lines = [header, ["---"] * len(header), *([text(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def usage(source: str) -> str:
    return f"""```python
import eomt
from transformers import pipeline

segment = pipeline("image-segmentation", model="{source}")
segment("photo.jpg")  # [{{"label": …, "mask": …, "score": …}}, …]
```"""


def readable(name: str, value: float) -> str:
    """A number as in papers: metrics in percent, losses and counts unchanged."""
    if "loss" in name or isinstance(value, int):
        return f"{value:.4g}"
    return f"{100 * value:.1f}" if value >= 0 else "–"  # −1: AP of a size without objects


def final_evaluation(args, state) -> dict:
    """The logged evaluation of the final weights, which are the last or, if loaded, the best. Empty if not logged."""
    evaluations = [row for row in state.log_history if any(key.startswith("eval_") for key in row)]
    best = args.load_best_model_at_end and state.best_model_checkpoint is not None  # the stock Trainer's condition
    step = state.best_global_step if best else state.global_step
    return next((row for row in reversed(evaluations) if row.get("step") == step), {})


def _losses(state) -> str:
    """First and last logged loss, each a mean over the steps since the previous entry."""
    logged = [f"{row['loss']:.4g} at step {row['step']:,}" for row in state.log_history if "loss" in row]
    if not logged:
        return "No loss was logged."
    return f"Loss: {', '.join(dict.fromkeys((logged[0], logged[-1])))}."


def run_card(config, args, state, name: str, license_name: str | None = None) -> str:
    """The card of a run from the model configuration, `EoMTTrainingArguments` and `TrainerState`."""
    results = {
        key.removeprefix("eval_"): value
        for key, value in final_evaluation(args, state).items()
        if key.startswith("eval_") and "per_second" not in key and "runtime" not in key
    }
    recipe = args.recipe_values
    starts, ends = args.annealing(state.max_steps, config.num_blocks)
    anneal = (
        ", ".join(f"{start:,}–{end:,}" for start, end in zip(starts, ends)) if args.masking == "annealed" else "none"
    )
    heads, backbone = args.warmup(state.max_steps)
    rates = f"backbone {args.backbone_learning_rate or args.learning_rate:g} × {args.llrd:g} per block"
    warmup = f"heads {heads:,}, then backbone {backbone:,}"
    if isinstance(config, PMTConfig):
        rates, warmup = "cosine decay, the backbone frozen", f"{heads:,}"
    settings = [
        ("model", f"`{config.model_type}`, {config.num_hidden_layers} blocks of width {config.hidden_size}"),
        ("queries; blocks with queries", f"{config.num_queries}; the last {config.num_blocks}"),
        ("classes", config.num_labels),
        ("image size", str(config.image_size)),
        ("optimizer steps done; planned", f"{state.global_step:,}; {state.max_steps:,}"),
        ("images per step", args.total_batch_size),
        ("learning rate", f"{args.learning_rate:g}, {rates}"),
        ("warm-up steps", warmup),
        ("weight decay; gradient norm", f"{args.weight_decay:g}; {args.max_grad_norm:g}"),
        ("masking; annealing steps", f"{args.masking}; {anneal}"),
        ("precision; seed", f"{args.mixed_precision if args.mixed_precision != 'no' else 'fp32'}; {args.seed}"),
    ]
    figures = [(key, readable(key, value)) for key, value in results.items()]
    measured = table(("result (metrics in percent)", "value"), figures)
    reference = (
        f"\nThe run follows the recipe `{recipe.name}`, for which the authors report "
        f"{recipe.reported.value} {recipe.metric} ({recipe.reported.table}).\n"
        if recipe
        else ""
    )
    return f"""{front_matter(config.task, "own-data" if recipe is None else recipe.dataset, license_name)}

# {name}

EoMT for {config.task} segmentation: {TASK_ROWS[config.task].description}. Paper: {PAPER}.

{usage(name)}

## Training
{reference}
{table(("setting", "value"), settings)}

{_losses(state)}

## Result

{measured if results else "Not evaluated."}

## Limits

{LIMITS}
"""
