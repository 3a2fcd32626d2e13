"""Evaluation: any batch size and number of workers, intermediate predictions, memory; a script of two processes."""

import json
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from eomt.image_processing import EoMTImageProcessor
from eomt.modeling_eomt import EoMTForUniversalSegmentation
from eomt.training.data import EvaluationTransform, load_data, make_shapes
from eomt.training.evaluation import evaluate_model
from tests.models import make_confident, tiny_model


def decided_model(task: str, num_blocks: int, num_labels: int) -> EoMTForUniversalSegmentation:
    queries = 1 if task == "panoptic" else 8  # random masks of several queries would cover each other
    sizes = {"num_hidden_layers": 2, "num_blocks": num_blocks, "num_queries": queries, "num_labels": num_labels}
    model = tiny_model(task=task, **sizes)
    make_confident(model)
    with torch.no_grad():
        model.class_predictor.bias[-1] = -1000  # never "no object"
    return model


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp("shapes"), train=1, val=7, size=(40, 90))


def evaluated(folder, task: str, batch_size: int = 1, masking=(0.0,), **options) -> dict:
    dataset, space = load_data(folder, task=task, split="val")
    model = decided_model(task, len(masking), space.num_labels)
    model.set_attn_mask_probs(masking)
    processor = EoMTImageProcessor(task=task, size=64)
    dataset = dataset.with_transform(EvaluationTransform(space, task=task))
    return evaluate_model(
        model, processor, dataset, task=task, label_space=space, batch_size=batch_size, progress=False, **options
    )


KEY = {"panoptic": "pq", "semantic": "mean_iou", "instance": "ap"}


@pytest.mark.parametrize("task", list(KEY))
def test_results_do_not_depend_on_batch_size_or_workers(shapes, task):
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


def test_metrics_of_intermediate_predictions_have_the_number_of_their_block(shapes):
    metrics = evaluated(shapes, "panoptic", masking=(0.0, 1.0), intermediate=True)
    assert "pq_block_1" in metrics
    assert "pq_block_0" not in metrics


def test_only_one_batch_is_in_memory(shapes):
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
