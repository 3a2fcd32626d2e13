"""The model card of a run, with its own figures (`EoMTTrainer.create_model_card`)."""

from ..configuration import TASK_ROWS
from .model_cards import LIMITS, PAPER, front_matter, table, usage


def readable(name: str, value: float) -> str:
    """A figure as papers print it: metrics, which are fractions, in percent; losses and counts as they are."""
    if "loss" in name or isinstance(value, int):
        return f"{value:.4g}"
    return f"{100 * value:.1f}" if value >= 0 else "–"  # AP of sizes that do not occur is -1


def final_evaluation(args, state) -> dict:
    """The logged evaluation of the weights a finished run has: the best ones', where those were loaded, or the last's.

    Empty where it is not logged.
    """
    evaluations = [row for row in state.log_history if any(key.startswith("eval_") for key in row)]
    best = args.load_best_model_at_end and state.best_model_checkpoint is not None  # as the stock Trainer asks
    step = state.best_global_step if best else state.global_step
    return next((row for row in reversed(evaluations) if row.get("step") == step), {})


def run_card(config, args, state, name: str, license_name: str | None = None) -> str:
    """A run's model configuration, `EoMTTrainingArguments` and `TrainerState` → its card, with its own figures."""
    results = {
        key.removeprefix("eval_"): value
        for key, value in final_evaluation(args, state).items()
        if key.startswith("eval_") and "per_second" not in key and "runtime" not in key
    }
    losses = [row["loss"] for row in state.log_history if "loss" in row]
    recipe = args.recipe_values
    starts, ends = args.annealing(state.max_steps, config.num_blocks)
    anneal = (
        ", ".join(f"{start:,}–{end:,}" for start, end in zip(starts, ends)) if args.masking == "annealed" else "none"
    )
    heads, backbone = args.warmup(state.max_steps)
    settings = [
        ("model", f"`{config.model_type}`, {config.num_hidden_layers} blocks of width {config.hidden_size}"),
        ("queries; blocks that see them", f"{config.num_queries}; the last {config.num_blocks}"),
        ("classes", config.num_labels),
        ("image size", str(config.image_size)),
        ("optimizer steps done, of", f"{state.global_step:,}, {state.max_steps:,}"),
        ("images a step", args.total_batch_size),
        (
            "learning rate",
            f"{args.learning_rate:g}, backbone {args.backbone_learning_rate or args.learning_rate:g} "
            f"× {args.llrd:g} a block below",
        ),
        ("warm-up steps", f"heads {heads:,}, then backbone {backbone:,}"),
        ("weight decay; gradient norm", f"{args.weight_decay:g}; {args.max_grad_norm:g}"),
        ("masking; annealing steps", f"{args.masking}; {anneal}"),
        ("precision; seed", f"{args.mixed_precision if args.mixed_precision != 'no' else 'fp32'}; {args.seed}"),
    ]
    figures = [(key, readable(key, value)) for key, value in results.items()]
    measured = table(("figure (metrics in percent)", "value"), figures)
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

{f"Loss, first and last logged: {losses[0]:.4g}, {losses[-1]:.4g}." if losses else "No loss was logged."}

## Result

{measured if results else "Not evaluated."}

## Limits

{LIMITS}
"""
