"""Streamed evaluation, as in the authors' code: no prediction is kept.

`evaluate_model` is the evaluation of the Trainer and `eomt evaluate`. Each image is segmented at its own size, and
`score` adds the result to the metric at once. With n processes, each takes every n-th image, and all return the same
result. All run the model equally often, as the processes of sharded models (FSDP, DeepSpeed) wait for each other.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from ..configuration.labels import LabelSpace
from ..image_processing.inference import infer
from .metrics import MaskAveragePrecision, MeanIoU, PanopticQuality
from .metrics.streaming import StreamingMetric
from .processes import rank, world_size


def metric_for(task: str, label_space: LabelSpace) -> StreamingMetric:
    """The metric of a task: PanopticQuality, MaskAveragePrecision or MeanIoU."""
    if task == "panoptic":
        return PanopticQuality(num_labels=label_space.num_labels, stuff_label_ids=label_space.stuff_label_ids)
    if task == "instance":
        return MaskAveragePrecision(num_labels=label_space.num_labels)
    if task == "semantic":
        return MeanIoU(num_labels=label_space.num_labels, ignore_index=label_space.ignore_index)
    raise ValueError(f"there is no task {task!r}; choose panoptic, instance or semantic")


def evaluate_model(
    model,
    processor,
    dataset,
    *,
    task: str,
    label_space: LabelSpace,
    batch_size: int = 1,
    num_workers: int = 0,
    intermediate: bool = False,
    on_image: Callable[[dict, object], None] | None = None,
    progress: bool = True,
) -> dict:
    """Evaluate a model on a data set with `EvaluationTransform`.

    Args:
        model: in evaluation mode, on its device.
        dataset: rows of `load_data` with `EvaluationTransform`, which have labels of `label_space`.
        intermediate: also evaluate the intermediate predictions of masked attention, as "pq_block_0", …, earliest
            first. There are none if masked attention is off.
        on_image: called with (sample, prediction) for every image of this process.

    Returns:
        The results of the metric (`metric_for`).
    """
    masked = []  # blocks with an intermediate prediction before them
    if intermediate:
        masked = [block for block in range(model.config.num_blocks) if model.predicts_before(block)]
    rules = {}
    if task == "panoptic" and processor.stuff_label_ids is None:
        rules["stuff_classes"] = list(label_space.stuff_label_ids)
    share = Share(dataset, rank(), world_size())
    segmented = infer(
        model,
        processor,
        share,
        task=task,
        batch_size=batch_size,
        num_workers=num_workers,
        read=sample_image,
        intermediate=intermediate,
        **rules,
    )
    segmented = tqdm(segmented, "evaluation", len(share), leave=False, disable=not progress or rank() != 0)
    pairs = ((result.item[0], [result.prediction, *result.before_blocks]) for result in segmented if result.item[1])
    suffixes = ["", *(f"_block_{block}" for block in masked)]
    return score(pairs, {suffix: metric_for(task, label_space) for suffix in suffixes}, on_image)


def score(
    pairs: Iterable[tuple[dict, Sequence]],
    metrics: dict[str, StreamingMetric],
    on_image: Callable[[dict, object], None] | None = None,
) -> dict:
    """Results of all metrics in one dictionary, each key with the suffix of its metric.

    Args:
        pairs: (sample, predictions) of the images of this process, with one prediction per metric, the final one first.
        metrics: {suffix: metric}
        on_image: called with (sample, final prediction) for every image.
    """
    for sample, predictions in pairs:
        reference = as_reference(sample)
        for metric, prediction in zip(metrics.values(), predictions, strict=True):
            metric.add(prediction=prediction, reference=reference)
        if on_image is not None:
            on_image(sample, predictions[0])
    results = {suffix: metric.compute() for suffix, metric in metrics.items()}
    return {key + suffix: value for suffix, result in results.items() for key, value in result.items()}


def as_reference(sample: dict):
    """The ground truth of a sample, with the name of the image for error messages of the metric."""
    names = {"image_id": sample["image_id"], "file_name": sample["file_name"]}
    reference = sample["reference"]
    return reference | names if isinstance(reference, dict) else {"segmentation": reference} | names


class Share(Dataset):
    """(sample, whether it counts) of every `world`-th image. Processes with one image less repeat one of the first."""

    def __init__(self, dataset, rank: int, world: int):
        self.dataset, self.rank, self.world = dataset, rank, world

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.world)

    def __getitem__(self, index: int) -> tuple[dict, bool]:
        index = index * self.world + self.rank
        return self.dataset[index % len(self.dataset)], index < len(self.dataset)


def sample_image(pair: tuple[dict, bool]) -> torch.Tensor:
    return pair[0]["image"]
