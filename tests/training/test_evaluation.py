"""Streamed evaluation: batch = single, windows, intermediate predictions, processes, and memory that does not grow."""

import json
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from eomt.configuration import EoMTConfig
from eomt.image_processing import EoMTImageProcessor
from eomt.modeling_eomt import EoMTForUniversalSegmentation
from eomt.training.data import EvaluationTransform, load_data, make_shapes
from eomt.training.evaluation import evaluate_model


def tiny_model(task: str, num_blocks: int) -> EoMTForUniversalSegmentation:
    torch.manual_seed(0)
    config = EoMTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_blocks=num_blocks,
        num_queries=1 if task == "panoptic" else 8,  # random masks of several would rule each other out
        patch_size=8,
        image_size=64,
        num_register_tokens=0,
        num_labels=8,
        stuff_label_ids=[4, 5, 6, 7],
        task=task,
    )
    model = EoMTForUniversalSegmentation(config).eval()
    with torch.no_grad():
        model.class_predictor.weight.mul_(40)  # decided enough for the panoptic threshold of 0.8,
        model.class_predictor.bias[-1] = -1000  # and never for "no object"
    return model


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp("shapes"), train=1, val=7, size=(40, 90))


def evaluated(folder, task: str, batch_size: int = 1, masking=(0.0,), **options) -> dict:
    dataset, space = load_data(folder, task="panoptic", split="val")
    model = tiny_model(task, num_blocks=len(masking))
    model.set_attn_mask_probs(masking)
    processor = EoMTImageProcessor(task=task, size=64)
    dataset = dataset.with_transform(EvaluationTransform(space, task="panoptic"))
    if task != "panoptic":
        dataset = AsTask(dataset, task)
    return evaluate_model(
        model, processor, dataset, task=task, label_space=space, batch_size=batch_size, progress=False, **options
    )


class AsTask(torch.utils.data.Dataset):
    """Panoptic ground truth as that of another task."""

    def __init__(self, dataset, task: str):
        self.dataset, self.task = dataset, task

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        sample = self.dataset[index]
        ids, segments = sample["reference"]["segmentation"], sample["reference"]["segments_info"]
        if self.task == "semantic":
            labels = np.full(sample["image"].shape[1:], 255, np.int32)
            for s in segments:
                labels[ids == s["id"]] = s["label_id"]
            return sample | {"reference": labels}
        masks, labels = np.stack([ids == s["id"] for s in segments]), [s["label_id"] for s in segments]
        return sample | {"reference": {"masks": masks, "labels": labels, "iscrowd": [0] * len(labels)}}


KEY = {"panoptic": "pq", "semantic": "mean_iou", "instance": "ap"}


@pytest.mark.parametrize("task", list(KEY))
def test_any_batch_size_and_workers_give_the_same(shapes, task):
    kept: dict[int, list] = {}

    def keep(sample, prediction):
        kept.setdefault(sample["image_id"], []).append(prediction)

    single = evaluated(shapes, task, on_image=keep)
    assert np.isfinite(single[KEY[task]])
    assert json.dumps(evaluated(shapes, task, batch_size=3, on_image=keep)) == json.dumps(single)
    if task == "semantic":
        assert json.dumps(evaluated(shapes, task, batch_size=2, num_workers=1)) == json.dumps(single)
    assert len(kept) == 7
    for alone, in_batch in kept.values():
        if task == "instance":
            assert torch.equal(alone["labels"], in_batch["labels"])
            masks, others = (coco_mask.decode(prediction["masks"]) for prediction in (alone, in_batch))
            assert masks.any()
            assert (masks != others).mean() < 1e-3
        else:
            assert task == "semantic" or alone["segments_info"]
            assert torch.equal(alone["segmentation"], in_batch["segmentation"])


def test_intermediate_predictions_exist_with_masking_only(shapes):
    assert not [key for key in evaluated(shapes, "semantic", intermediate=True) if "_block_" in key]
    masked = evaluated(shapes, "semantic", masking=(1.0,), intermediate=True)
    assert 0 <= masked["mean_iou_block_0"] <= 1
    assert masked["mean_iou_block_0"] != masked["mean_iou"]


def test_intermediate_metrics_keep_their_blocks_name_when_another_is_annealed(shapes):
    metrics = evaluated(shapes, "panoptic", masking=(0.0, 1.0), intermediate=True)
    assert "pq_block_1" in metrics
    assert "pq_block_0" not in metrics


def test_predictions_and_images_are_let_go(shapes):
    """Whatever the number of images, those of one batch are in memory."""
    kept = []

    def keep(sample, prediction):
        kept.extend([weakref.ref(sample["image"]), weakref.ref(prediction["segmentation"])])
        assert sum(reference() is not None for reference in kept) <= 2 * 3  # the batch, and one of the last

    evaluated(shapes, "semantic", batch_size=2, on_image=keep)
    assert len(kept) == 2 * 7


if __name__ == "__main__":
    import torch.distributed as dist

    dist.init_process_group("gloo")
    results = {task: evaluated(sys.argv[1], task, batch_size=2) for task in KEY}
    Path(sys.argv[2], f"{dist.get_rank()}.json").write_text(json.dumps(results))
    dist.destroy_process_group()
