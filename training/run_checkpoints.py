"""Atomic checkpoints: written in a staging folder, renamed when complete, checked before a run resumes."""

import os
import re
import shutil
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from .files import read_json

STAGING = ".saving"  # below the output folder; what is in it is not complete


def last_complete_checkpoint(folder: str | os.PathLike) -> str | None:
    """Output folder → its latest `checkpoint-<step>` that can be resumed, or None."""
    return next((str(path) for path in _latest_first(folder) if is_complete(path)), None)


def checkpoint_to_resume(folder: str | os.PathLike) -> str | None:
    """The same; `ValueError` where there are checkpoints and none is complete: a run from the start would delete them.

    None: there is no checkpoint at all.
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
    found = [(int(match[1]), path) for path in Path(folder).glob("*") if (match := pattern.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def is_complete(checkpoint: str | os.PathLike) -> bool:
    """Whether state, weights, optimizer and schedule of a checkpoint folder are all there and not cut short."""
    return missing_file(checkpoint) is None


def missing_file(checkpoint: str | os.PathLike) -> str | None:
    """The first file of a checkpoint folder that is missing or cut short, or None."""
    checkpoint = Path(checkpoint)
    sharded = any(checkpoint.glob("pytorch_model_fsdp*")) or any(checkpoint.glob("global_step*"))  # FSDP, DeepSpeed
    try:
        read_json(checkpoint / "trainer_state.json")
    except (OSError, ValueError):
        return "trainer_state.json"
    if sharded:  # their own files; the rename says that they are complete
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


class AtomicCheckpointsMixin:
    """Mixin of a `Trainer`: `checkpoint-<step>` appears by one rename, after every process has written its part."""

    _staged = False

    def _get_output_dir(self, trial) -> str:
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, STAGING) if self._staged else folder

    def _save_checkpoint(self, model, trial) -> None:
        folder = super()._get_output_dir(trial)
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        staged, final = Path(folder, STAGING, name), Path(folder, name)
        if self.args.should_save:
            shutil.rmtree(staged, ignore_errors=True)  # left by a killed run
        self.accelerator.wait_for_everyone()
        self._point_to_best(folder, existing=True)
        limit, self.args.save_total_limit = self.args.save_total_limit, None  # old ones go once the new one is there
        self._staged = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._staged = False
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        self._point_to_best(folder, existing=False)
        if self.args.should_save:
            self.state.save_to_json(str(staged / "trainer_state.json"))
            shutil.rmtree(final, ignore_errors=True)
            staged.rename(final)
            staged.parent.rmdir()
            rotate_checkpoints(
                output_dir=folder, save_total_limit=limit, best_model_checkpoint=self.state.best_model_checkpoint
            )
        self.accelerator.wait_for_everyone()

    def _point_to_best(self, folder: str, existing: bool) -> None:
        """Name the best checkpoint by where it will be; the stock Trainer looks where it is being written."""
        if self.state.best_global_step:
            best = os.path.join(folder, f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}")
            current = self.state.best_global_step == self.state.global_step
            if os.path.isdir(best) or (current and not existing):
                self.state.best_model_checkpoint = best
