"""Checkpoints of a run: complete ones, atomic writing, and the options that must not change in a resumed run.

A checkpoint is written to a staging folder and renamed when it is complete.
"""

import json
import os
import re
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from .arguments import EoMTTrainingArguments
from .files import read_json, write_json

STAGING = ".saving"  # below the output folder; holds incomplete checkpoints
OPTIONS_FILE = "options.json"
RUN_OPTIONS = (  # the trainer checks the length of the run itself
    "task", "learning_rate", "backbone_learning_rate", "weight_decay", "llrd", "llrd_l2_enabled",
    "head_warmup_steps", "backbone_warmup_steps", "total_batch_size", "masking", "freeze_backbone", "cache_features",
    "cached_crops", "lora", "ema", "seed",
)  # fmt: skip
MODEL_OPTIONS = (  # fields that decide the shapes of the weights
    "model_type", "image_size", "patch_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
    "num_register_tokens", "mlp_ratio", "use_swiglu_ffn", "num_blocks", "num_queries", "num_labels",
)  # fmt: skip


def last_complete_checkpoint(folder: str | os.PathLike) -> str | None:
    """Latest complete `checkpoint-<step>` of an output folder, or None."""
    return next((str(path) for path in _latest_first(folder) if missing_file(path) is None), None)


def checkpoint_to_resume(folder: str | os.PathLike) -> str | None:
    """Latest complete checkpoint of an output folder, or None without checkpoints.

    Raises:
        ValueError: when all checkpoints are incomplete; a new run would delete them.
    """
    checkpoint, found = last_complete_checkpoint(folder), _latest_first(folder)
    if checkpoint is None and found:
        raise ValueError(
            f"{found[0]} and all others are incomplete: its {missing_file(found[0])} is missing or damaged; "
            "move the checkpoints away to start again, or choose another output_dir"
        )
    return checkpoint


def _latest_first(folder: str | os.PathLike) -> list[Path]:
    pattern = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")
    matches = [(pattern.fullmatch(path.name), path) for path in Path(folder).glob("*")]
    found = [(int(match[1]), path) for match, path in matches if match]
    return [path for _, path in sorted(found, reverse=True)]


def missing_file(checkpoint: str | os.PathLike) -> str | None:
    """The file of state, weights, optimizer or schedule that is missing in a checkpoint or truncated, or None."""
    checkpoint = Path(checkpoint)
    sharded = any(checkpoint.glob("pytorch_model_fsdp*")) or any(checkpoint.glob("global_step*"))  # FSDP, DeepSpeed
    try:
        read_json(checkpoint / "trainer_state.json")
    except (OSError, ValueError):
        return "trainer_state.json"
    if sharded:  # other files, complete since the folder was renamed
        return None
    try:
        for file in _weights(checkpoint):
            with safe_open(file, framework="pt"):
                pass
    except (OSError, ValueError, KeyError, SafetensorError):
        return "model.safetensors"
    return next((name for name in ("optimizer.pt", "scheduler.pt") if not zipfile.is_zipfile(checkpoint / name)), None)


def _weights(checkpoint: Path) -> list[Path]:
    index = checkpoint / "model.safetensors.index.json"
    if index.exists():
        return [checkpoint / name for name in set(read_json(index)["weight_map"].values())]
    return [checkpoint / "model.safetensors"]


def checkpoint_name(step: int) -> str:
    return f"{PREFIX_CHECKPOINT_DIR}-{step}"


def put_in_place(folder: str | os.PathLike, name: str, state, limit: int | None) -> None:
    """Write the state into a staged checkpoint, rename it to its place, and delete the oldest beyond the limit."""
    staged, final = Path(folder, STAGING, name), Path(folder, name)
    state.save_to_json(str(staged / "trainer_state.json"))
    shutil.rmtree(final, ignore_errors=True)
    staged.rename(final)
    staged.parent.rmdir()
    rotate_checkpoints(
        output_dir=str(folder), save_total_limit=limit, best_model_checkpoint=state.best_model_checkpoint
    )


def run_options(args: EoMTTrainingArguments, config) -> dict:
    """Options that must not change in a resumed run, as JSON values."""
    values = {name: getattr(args, name) for name in RUN_OPTIONS}
    values |= {name: getattr(config, name, None) for name in MODEL_OPTIONS}
    return json.loads(json.dumps(values))


def write_options(args: EoMTTrainingArguments, config, given: Mapping | None = None) -> None:
    """Write the options of a new run, and further ones such as data and checkpoint (`given`), to its output folder."""
    write_json(Path(args.output_dir, OPTIONS_FILE), {**(given or {}), **run_options(args, config)}, indent=2)


def check_length(checkpoint: str | Path, max_steps: int) -> None:
    """Raise `ValueError` for another length of the run: learning rates and mask probabilities depend on it."""
    planned = read_json(Path(checkpoint, "trainer_state.json"))["max_steps"]
    if planned != max_steps:
        raise ValueError(
            f"{checkpoint} is from a run of {planned} steps, not {max_steps}: learning rates and mask probabilities "
            "would jump; resume with the same length, or start a new run from this checkpoint"
        )


def check_options(args: EoMTTrainingArguments, config) -> None:
    """Raise `ValueError` for options that differ from those of the run in the output folder, if they are known."""
    file = Path(args.output_dir, OPTIONS_FILE)
    if not file.exists():
        return
    before, now = read_json(file), run_options(args, config)
    changed = [
        f"{name} {before[name]}, not {now[name]}" for name in now if name in before and before[name] != now[name]
    ]
    if changed:
        raise ValueError(
            f"{args.output_dir}: the run has {'; '.join(changed)}; resume with the same options, or choose another "
            "output_dir"
        )
