"""What a resumed run must share with the original: options, saved beside the checkpoints, and length."""

import json
from collections.abc import Mapping
from pathlib import Path

from .arguments import EoMTTrainingArguments
from .files import read_json, write_json

FILE = "options.json"
RUN_OPTIONS = (  # a checkpoint's optimizer brings its own rates and decay; the trainer compares the runs' lengths
    "task", "learning_rate", "backbone_learning_rate", "weight_decay", "llrd", "llrd_l2_enabled", "poly_power",
    "head_warmup_steps", "backbone_warmup_steps", "total_batch_size", "masking", "freeze_backbone", "lora", "ema",
    "seed",
)  # fmt: skip
MODEL_OPTIONS = (  # the backbone, as far as its weights would not fit
    "model_type", "image_size", "patch_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
    "num_register_tokens", "mlp_ratio", "use_swiglu_ffn", "num_blocks", "num_queries", "num_labels",
)  # fmt: skip


def run_options(args: EoMTTrainingArguments, config) -> dict:
    """A run's arguments and model configuration → what must not change on the way, as JSON gives it back."""
    values = {name: getattr(args, name) for name in RUN_OPTIONS}
    values |= {name: getattr(config, name, None) for name in MODEL_OPTIONS}
    return json.loads(json.dumps(values))


def write_options(args: EoMTTrainingArguments, config, given: Mapping | None = None) -> None:
    """Keep a new run's options in its output folder; `given`: further ones that `eomt compare` shows where they differ,
    such as the data and the checkpoint."""
    write_json(Path(args.output_dir, FILE), {**(given or {}), **run_options(args, config)}, indent=2)


def planned_steps(checkpoint: str | Path) -> int | None:
    """The length that a checkpoint's run was laid out for, in optimizer steps; None where it does not say."""
    file = Path(checkpoint, "trainer_state.json")
    return read_json(file).get("max_steps") if file.is_file() else None


def check_length(checkpoint: str | Path, max_steps: int) -> None:
    """`ValueError` for another length: rates and masks follow from it and would jump, after the end rise again."""
    planned = planned_steps(checkpoint)
    if planned not in (None, max_steps):
        raise ValueError(
            f"{checkpoint} is of a run of {planned} steps, not {max_steps}: rates and masks would "
            "change along the way; resume with the same length, or start a new run from the model (--checkpoint)"
        )


def check_options(args: EoMTTrainingArguments, config) -> None:
    """`ValueError` naming what differs from the run in the output folder; a run that kept no options passes."""
    file = Path(args.output_dir, FILE)
    if not file.exists():
        return
    before, now = read_json(file), run_options(args, config)
    changed = [
        f"{name} {before[name]}, not {now[name]}" for name in now if name in before and before[name] != now[name]
    ]
    if changed:
        raise ValueError(
            f"{args.output_dir}: its run has {'; '.join(changed)}; give the same to resume, or take another output_dir"
        )
