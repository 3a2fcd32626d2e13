"""Streamed evaluation: images in, one metric out, nothing kept in between (as the authors' code evaluates).

`evaluate_model` serves the Trainer and `eomt evaluate`: each image is segmented at its own size and the metric reduces
the result at once. With several processes each takes every n-th image; all of them return the same result, and all run
the model equally often, so that sharded models (FSDP, DeepSpeed) do not wait for each other.
"""

from collections.abc import Callable

import torch
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from ..configuration.labels import LabelSpace
from ..image_processing.inference import infer
from .metrics import MaskAveragePrecision, MeanIoU, PanopticQuality
from .metrics.streaming import StreamingMetric
from .processes import gather, rank, world_size


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
    metrics: dict[str, StreamingMetric] = {"": metric_for(task, label_space)}
    share = Share(dataset, rank(), world_size())
    masked = []  # the blocks that an intermediate prediction is made before
    if intermediate:
        masked = [block for block in range(model.config.num_blocks) if model.predicts_before(block)]
    rules = {}
    if task == "panoptic" and processor.stuff_label_ids is None:
        rules["stuff_classes"] = list(label_space.stuff_label_ids)
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
    for result in tqdm(segmented, "evaluation", len(share), leave=False, disable=not progress or rank() != 0):
        sample, counts = result.item
        if not counts:
            continue
        reference = as_reference(sample)
        predictions = {f"_block_{block}": prediction for block, prediction in zip(masked, result.before_blocks)}
        for suffix, prediction in {"": result.prediction, **predictions}.items():
            if suffix not in metrics:
                metrics[suffix] = metric_for(task, label_space)
            metrics[suffix].add(prediction=prediction, reference=reference)
        if on_image is not None:
            on_image(sample, result.prediction)
    # a process without an image of its own has seen no intermediate prediction: all take part in all sums
    suffixes = sorted({suffix for names in gather(list(metrics)) for suffix in names})
    result: dict = {}
    for suffix in suffixes:
        metric = metrics[suffix] if suffix in metrics else metric_for(task, label_space)
        result |= {f"{key}{suffix}": value for key, value in metric.compute().items()}
    return result


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
