"""Streamed evaluation: images in, one metric out, nothing kept in between (as the authors' code evaluates).

`evaluate_model` serves the Trainer and `eomt evaluate`: each image is segmented at its own size and the metric reduces
the result at once, in `score`, which files of predictions share. With several processes each takes every n-th image;
all of them return the same result, and all run the model equally often, so that sharded models (FSDP, DeepSpeed) do not
wait for each other.
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
    """The task's metric over the classes: PanopticQuality, MaskAveragePrecision or MeanIoU."""
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
    """The task's metric of a model over a data set with `EvaluationTransform`.

    model: on its device and in its dtype; `eval()` is the caller's to set. intermediate: also the metric of every
    prediction that masked attention makes, earliest first, as "pq_block_0", …; there are none where masking is off.
    on_image: called with (sample, prediction) of every image this process evaluates; what it keeps is its own affair.
    Returns the metric's dict; see its class.
    """
    masked = []  # the blocks that an intermediate prediction is made before
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
    """Predictions of a model or out of files → the metrics' results in one dict, whose keys end in their suffixes.

    pairs: (sample, predictions, one a metric, the first of them the final one) of this process's images.
    metrics: suffix → metric. on_image: as for `evaluate_model`.
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
    """The sample's reference with the image's name in it, so that a metric's error can name it."""
    names = {"image_id": sample["image_id"], "file_name": sample["file_name"]}
    reference = sample["reference"]
    return reference | names if isinstance(reference, dict) else {"segmentation": reference} | names


class Share(Dataset):
    """This process's images: every `world`-th, repeated from the start where others have one more."""

    def __init__(self, dataset, rank: int, world: int):
        self.dataset, self.rank, self.world = dataset, rank, world

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.world)

    def __getitem__(self, index: int) -> tuple[dict, bool]:
        index = index * self.world + self.rank
        return self.dataset[index % len(self.dataset)], index < len(self.dataset)


def sample_image(pair: tuple[dict, bool]) -> torch.Tensor:
    return pair[0]["image"]
