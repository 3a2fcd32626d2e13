"""The three tasks and the paper's settings for each."""

from dataclasses import dataclass
from typing import Literal

Task = Literal["panoptic", "instance", "semantic"]


@dataclass(frozen=True, kw_only=True)
class TaskRow:
    """Settings of a task (paper, Section 4.1)."""

    metric: str
    "Name of the metric in papers, where it is in percent."
    metric_key: str
    "Key in the results, where it is a fraction."
    num_queries: int
    windows: bool
    "Whether images are cut into overlapping windows instead of padded."
    image_size: int
    "Default side of the training crop, in pixels."
    scale_range: tuple[float, float]
    "Default scale jitter, relative to the crop."
    drawing_threshold: float | None
    "Least score of a drawn segment; for panoptic also the paper's threshold for the result."
    description: str


TASK_ROWS: dict[str, TaskRow] = {
    "panoptic": TaskRow(
        metric="PQ", metric_key="pq", num_queries=200, windows=False, image_size=640, scale_range=(0.1, 2.0),
        drawing_threshold=0.8, description="every pixel gets a class and, where its class is countable, an object",
    ),
    "instance": TaskRow(
        metric="AP", metric_key="ap", num_queries=200, windows=False, image_size=640, scale_range=(0.1, 2.0),
        drawing_threshold=0.5, description="every object gets a class, a score and a mask; masks may overlap",
    ),
    "semantic": TaskRow(
        metric="mIoU", metric_key="mean_iou", num_queries=100, windows=True, image_size=512, scale_range=(0.5, 2.0),
        drawing_threshold=None, description="every pixel gets a class",
    ),
}  # fmt: skip
TASKS: tuple[str, ...] = tuple(TASK_ROWS)
