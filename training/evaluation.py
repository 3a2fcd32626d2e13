"""Streamed evaluation: images in, one metric out, nothing kept in between (as the authors' code evaluates).

    B images of a batch;  V model inputs, more than B where windows are cut;  Q queries;  H, W an image's own size

`evaluate_model` serves the Trainer and `eomt evaluate`: workers read and prepare images, the model sees padded or
windowed inputs by the task, post-processing happens at the image's own size, the metric reduces it at once. With
several processes each takes every n-th image; all give the same result.
"""

from collections.abc import Callable, Iterator
from types import SimpleNamespace

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from ..configuration.labels import LabelSpace
from .metrics import MaskAveragePrecision, MeanIoU, PanopticQuality
from .metrics.streaming import StreamingMetric
from .processes import gather, rank, world_size

TOP_K = 100  # predictions of an image that count for AP


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
    for sample, predictions in predict(
        model,
        processor,
        dataset,
        task=task,
        label_space=label_space,
        batch_size=batch_size,
        num_workers=num_workers,
        intermediate=intermediate,
        progress=progress,
    ):
        reference = as_reference(sample)
        for suffix, prediction in predictions.items():
            if suffix not in metrics:
                metrics[suffix] = metric_for(task, label_space)
            metrics[suffix].add(prediction=prediction, reference=reference)
        if on_image is not None:
            on_image(sample, predictions[""])
    # a process without an image of its own has seen no intermediate prediction: all take part in all sums
    suffixes = sorted({suffix for names in gather(list(metrics)) for suffix in names})
    result: dict = {}
    for suffix in suffixes:
        metric = metrics[suffix] if suffix in metrics else metric_for(task, label_space)
        result |= {f"{key}{suffix}": value for key, value in metric.compute().items()}
    return result


def predict(
    model,
    processor,
    dataset,
    *,
    task: str,
    label_space: LabelSpace,
    batch_size: int = 1,
    num_workers: int = 0,
    intermediate: bool = False,
    progress: bool = False,
) -> Iterator[tuple[dict, dict[str, object]]]:
    """(sample, {"": final prediction, "_block_0": …}) of every image of this process, in the metric's format.

    All processes run the model equally often, so that sharded models (FSDP, DeepSpeed) do not wait for each other;
    what is run twice to that end is not given.
    """
    parameter = next(model.parameters())
    loader = DataLoader(
        _Share(dataset, rank(), world_size()),
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=_Inputs(processor),
        pin_memory=parameter.device.type == "cuda",
    )
    for batch in tqdm(loader, desc="evaluation", leave=False, disable=not progress or rank() != 0):
        pixels = batch["pixel_values"].to(parameter.device, parameter.dtype, non_blocking=True)  # [V, 3, S_h, S_w]
        sizes = [tuple(sample["image"].shape[1:]) for sample in batch["samples"]]
        with torch.no_grad():  # inference tensors would stay in what FSDP gathers
            outputs = model(pixel_values=pixels, patch_offsets=batch.get("patch_offsets"))
            stages = {"": outputs}
            if intermediate:
                for block, logits in enumerate(outputs.auxiliary_logits or ()):
                    stages[f"_block_{block}"] = SimpleNamespace(**logits, patch_offsets=outputs.patch_offsets)
            results = {
                suffix: post_process(processor, stage, sizes, task, label_space) for suffix, stage in stages.items()
            }
        for i, (sample, counts) in enumerate(zip(batch["samples"], batch["counts"])):
            if counts:
                yield sample, {suffix: predictions[i] for suffix, predictions in results.items()}


def post_process(processor, outputs, sizes: list[tuple[int, int]], task: str, label_space: LabelSpace) -> list:
    """Outputs → one prediction an image at its own size (H, W), as the task's metric takes it; paper's thresholds."""
    if task == "semantic":
        return [m.cpu() for m in processor.post_process_semantic_segmentation(outputs, target_sizes=sizes)]
    if task == "instance":
        found = processor.post_process_instance_segmentation(
            outputs, target_sizes=sizes, threshold=0.0, top_k=TOP_K, return_binary_maps=True
        )
        return [_instances(result) for result in found]
    stuff = processor.stuff_label_ids
    found = processor.post_process_panoptic_segmentation(
        outputs, target_sizes=sizes, stuff_classes=list(label_space.stuff_label_ids) if stuff is None else stuff
    )
    return [{"segmentation": r["segmentation"].cpu(), "segments_info": r["segments_info"]} for r in found]


def as_reference(sample: dict):
    """The sample's reference with the image's name in it, so that a metric's error can name it."""
    names = {"image_id": sample["image_id"], "file_name": sample["file_name"]}
    reference = sample["reference"]
    return reference | names if isinstance(reference, dict) else {"segmentation": reference} | names


def _instances(result: dict) -> dict:
    info = result["segments_info"]
    return {
        "masks": result["segmentation"].cpu(),  # bool [n, H, W]
        "labels": torch.tensor([s["label_id"] for s in info], dtype=torch.int64),
        "scores": torch.tensor([s["score"] for s in info], dtype=torch.float64),
    }


class _Share(Dataset):
    """This process's images: every `world`-th, repeated from the start where others have one more."""

    def __init__(self, dataset, rank: int, world: int):
        self.dataset, self.rank, self.world = dataset, rank, world

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.world)

    def __getitem__(self, index: int) -> tuple[dict, bool]:
        index = index * self.world + self.rank
        return self.dataset[index % len(self.dataset)], index < len(self.dataset)


class _Inputs:
    """Samples → {"samples", "counts", "pixel_values" (V, 3, S_h, S_w), "patch_offsets"?}; runs in the workers."""

    def __init__(self, processor):
        self.processor = processor

    def __call__(self, pairs: list[tuple[dict, bool]]) -> dict:
        samples, counts = zip(*pairs)
        inputs = self.processor(images=[sample["image"] for sample in samples], return_tensors="pt")
        return {"samples": samples, "counts": counts, **inputs}
