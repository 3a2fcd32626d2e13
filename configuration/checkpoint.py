"""Inference of the task and the stuff classes for checkpoints without them, and the effect of new labels."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils import cached_file, logging

from .labels import PACKAGED, KnownLabels, known_labels, label_space
from .tasks import TASK_ROWS, TASKS

HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
"""Arguments of `from_pretrained` that locate a repository."""

logger = logging.get_logger(__name__)


def infer_task(
    labels: KnownLabels | None, num_queries: int | None = None, windows: bool | None = None, name: str = ""
) -> tuple[str, bool]:
    """Infer the task of a checkpoint without a saved one. Also returns whether the files decide it.

    Args:
        labels: the data set with these class names (`known_labels`).
        num_queries: in the paper 100 for semantic segmentation, 200 for the other tasks.
        windows: whether the processor cuts windows (True), pads (False) or neither (None).
        name: name of the repository or folder. If it contains the name of one possible task, that is the task.
    """
    possible = labels.tasks if labels else TASKS
    if windows:
        return "semantic", True
    if len(possible) == 1:
        return possible[0], True
    named = [task for task in possible if re.search(rf"(?<![a-z]){task}(?![a-z])", name.lower())]
    if len(named) == 1:
        return named[0], True
    semantic = num_queries == TASK_ROWS["semantic"].num_queries
    if labels:
        return ("semantic" if semantic or "panoptic" not in possible else "panoptic"), num_queries is not None
    return ("semantic" if semantic and windows is None else "panoptic"), False


def checkpoint_task(own: Mapping, config: Mapping, processor: Mapping, path: str | None) -> str:
    """The task of a checkpoint from its two files. Configuration and processor both use this, so that they agree.

    Args:
        own: the file to load, `config` or `processor`. Its saved task has priority.
        config: content of config.json.
        processor: content of preprocessor_config.json.
        path: folder or repository.
    """
    for saved in (own, config, processor):
        if saved.get("task") is not None:
            return saved["task"]
    windows = None
    if processor.get("do_split_image") or processor.get("do_pad"):
        windows = bool(processor.get("do_split_image"))
    task, decided = infer_task(
        known_labels(config.get("id2label")), config.get("num_queries", 200), windows, checkpoint_name(path)
    )
    if not decided:
        logger.warning_once(
            f"{path or 'This checkpoint'} has neither a saved task nor the classes of a known data set; using "
            f"task={task!r}. Give task for another one."
        )
    return task


def checkpoint_stuff(config: Mapping, task: str, processor: Mapping | None = None) -> list[int] | None:
    """Stuff labels of a panoptic checkpoint: from its configuration, else from the data set with its classes, else from
    the image processor.

    An empty list in the configuration is its default, so that the labels of a processor have priority. The processor
    can come from another model: its stuff labels count only for classes of the same name in the configuration.
    """
    configured = config.get("stuff_label_ids")
    if configured:
        return configured
    labels = known_labels(config.get("id2label"))
    if configured is None and labels and task == "panoptic":
        return list(labels.stuff_label_ids)
    saved = (processor or {}).get("stuff_label_ids") or configured
    if not saved or not config.get("id2label"):
        return saved
    names = {int(label): name for label, name in config["id2label"].items()}
    for space in (label_space(name) for name in PACKAGED):
        if list(space.stuff_label_ids) == sorted(saved):
            return [label for label in saved if names.get(label) == space.names[label]]
    return saved


def checkpoint_name(path: str | None) -> str:
    """Name of a folder or repository; for a folder in the hub's cache, the name of the repository."""
    if not path:
        return ""
    path = Path(path).resolve() if Path(path).exists() else Path(path)
    path = path.parent if path.is_file() else path
    return path.parent.parent.name if path.parent.name == "snapshots" else path.name


def read_beside(path: str | None, file_name: str, **hub: Any) -> dict:
    """Content of another file of the checkpoint; {} if it is missing or unreadable.

    Args:
        hub: some of `HUB_ARGUMENTS`.
    """
    if not path:
        return {}
    folder = str(Path(path).parent) if Path(path).is_file() else str(path)
    missing_is_fine = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    try:
        file = cached_file(folder, file_name, **missing_is_fine, **hub)
        content = json.loads(Path(file).read_text(encoding="utf-8")) if file else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def new_labels(saved: dict | None, kwargs: dict[str, Any]) -> dict | None:
    """New labels from `id2label` or `num_labels`, which are removed from `kwargs`; None to keep the saved ones."""
    if kwargs.get("id2label") is not None:
        kwargs.pop("num_labels", None)
        return kwargs.pop("id2label")
    count = kwargs.get("num_labels")
    if not saved or not isinstance(count, int) or count == len(saved):
        return None
    return {label: f"LABEL_{label}" for label in range(kwargs.pop("num_labels"))}


def applicable_stuff(stuff: list[int], old: dict | None, new: dict) -> list[int]:
    """Stuff labels with the same class in the id2labels `new` and `old`; others are logged and dropped."""
    if old is None:
        return stuff
    old, new = ({int(label): name for label, name in names.items()} for names in (old, new))
    if old == new:
        return stuff
    kept = [label for label in stuff if new.get(label) == old.get(label) != f"LABEL_{label}"]
    if len(kept) < len(stuff):
        dropped = [label for label in stuff if label not in kept]
        logger.warning(f"the labels changed: stuff_label_ids {dropped} no longer apply and are dropped")
    return kept
