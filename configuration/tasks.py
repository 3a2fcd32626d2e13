"""The three tasks: what the paper fixes for each, and which one a checkpoint was trained for."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transformers.utils import cached_file, logging

from .labels import KnownLabels, known_labels

Task = Literal["panoptic", "instance", "semantic"]


@dataclass(frozen=True)
class TaskRow:
    """What follows from a task (paper, Section 4.1)."""

    metric: str
    "As papers print it, in percent."
    metric_key: str
    "Its key in a metric's result, a fraction."
    num_queries: int
    windows: bool
    "Whether images are cut into overlapping windows instead of padded."
    image_size: int
    "Default side of the training crop, in pixels."
    scale_range: tuple[float, float]
    "Default scale jitter, relative to the crop."
    drawing_threshold: float | None
    "Score from which a segment is drawn; the panoptic one is also the paper's for the result."
    description: str


TASK_ROWS: dict[str, TaskRow] = {
    "panoptic": TaskRow("PQ", "pq", 200, False, 640, (0.1, 2.0), 0.8,
                        "every pixel gets a class and, where its class is countable, an object"),
    "instance": TaskRow("AP", "ap", 200, False, 640, (0.1, 2.0), 0.5,
                        "every object gets a class, a score and a mask; masks may overlap"),
    "semantic": TaskRow("mIoU", "mean_iou", 100, True, 512, (0.5, 2.0), None,
                        "every pixel gets a class"),
}  # fmt: skip
TASKS: tuple[str, ...] = tuple(TASK_ROWS)

HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
"""Arguments of `from_pretrained` that say where a repository is found, and how."""

logger = logging.get_logger(__name__)


def infer_task(
    labels: KnownLabels | None,
    num_queries: int | None = None,
    windows: bool | None = None,
    name: str = "",
) -> tuple[str, bool]:
    """What a checkpoint without a saved task was trained for, and whether anything decided that.

    Args:
        labels: the data set that the class names are of (`known_labels`).
        num_queries: 100 are the paper's for semantic segmentation, 200 for the other tasks.
        windows: whether its processor cuts windows (which cannot be joined to segments), pads (`False`) or neither.
        name: repository or folder; it decides between the tasks of one data set if it holds the word of one of them.
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
    """The task of a checkpoint out of its two files; both sides ask here, so that they agree.

    Args:
        own: the file that is being loaded: `config` or `processor`. Its saved task is taken before the other's.
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
            f"{path or 'This checkpoint'} does not say its task and has the classes of no known data set: "
            f"task={task!r} is taken; give task= (--task) if it is another."
        )
    return task


def checkpoint_stuff(config: Mapping, task: str) -> list[int] | None:
    """Stuff labels of a panoptic checkpoint: the saved ones, else those of the data set that its classes are of."""
    if config.get("stuff_label_ids") is not None:
        return config["stuff_label_ids"]
    labels = known_labels(config.get("id2label"))
    return list(labels.stuff_label_ids) if labels and task == "panoptic" else None


def checkpoint_name(path: str | None) -> str:
    """Folder or repository → its own name; of a folder in the hub's cache the repository's."""
    if not path:
        return ""
    path = Path(path).resolve() if Path(path).exists() else Path(path)
    path = path.parent if path.is_file() else path
    return path.parent.parent.name if path.parent.name == "snapshots" else path.name


def read_beside(path: str | None, file_name: str, **hub: Any) -> dict:
    """The checkpoint's other file, {} where there is none or none that can be read.

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
