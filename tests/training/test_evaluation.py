"""Streamed evaluation: batch = single, windows, intermediate predictions, processes, and memory that does not grow."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from eomt.configuration import EoMTConfig
from eomt.configuration.labels import LabelSpace
from eomt.image_processing import EoMTImageProcessor
from eomt.modeling_eomt import EoMTForUniversalSegmentation
from eomt.training.data import EvaluationTransform, load_data, make_shapes
from eomt.training.evaluation import evaluate_model
from tests.pairs import ENVIRONMENT


def tiny_model(task: str, num_labels: int = 8, stuff=(4, 5, 6, 7), num_blocks=1) -> EoMTForUniversalSegmentation:
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
        id2label={i: str(i) for i in range(num_labels)},
        label2id={str(i): i for i in range(num_labels)},
        stuff_label_ids=list(stuff),
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


def evaluated(folder, task: str, batch_size: int = 1, masking: float = 0.0, **options) -> dict:
    dataset, space = load_data(folder, task="panoptic", split="val")
    model = tiny_model(task)
    model.set_attn_mask_probs([masking])
    processor = EoMTImageProcessor(task=task, size=64)
    if task == "semantic":  # the panoptic ground truth as a label map
        dataset = SemanticOf(dataset.with_transform(EvaluationTransform(space, task="panoptic")))
    elif task == "instance":
        dataset = InstanceOf(dataset.with_transform(EvaluationTransform(space, task="panoptic")))
    else:
        dataset = dataset.with_transform(EvaluationTransform(space, task=task))
    return evaluate_model(
        model, processor, dataset, task=task, label_space=space, batch_size=batch_size, progress=False, **options
    )


class SemanticOf(torch.utils.data.Dataset):
    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        sample = self.dataset[index]
        labels = np.full(sample["image"].shape[1:], 255, np.int32)
        for s in sample["reference"]["segments_info"]:
            labels[sample["reference"]["segmentation"] == s["id"]] = s["label_id"]
        return sample | {"reference": labels}


class InstanceOf(SemanticOf):
    def __getitem__(self, index):
        sample = self.dataset[index]
        reference = sample["reference"]
        masks = np.stack([reference["segmentation"] == s["id"] for s in reference["segments_info"]])
        labels = [s["label_id"] for s in reference["segments_info"]]
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
    masked = evaluated(shapes, "semantic", masking=1.0, intermediate=True)
    assert 0 <= masked["mean_iou_block_0"] <= 1
    assert masked["mean_iou_block_0"] != masked["mean_iou"]


def test_intermediate_metrics_keep_their_blocks_name_when_another_is_annealed(shapes):
    dataset, space = load_data(shapes, task="panoptic", split="val")
    model = tiny_model("panoptic", num_blocks=2)
    model.set_attn_mask_probs([0.0, 1.0])
    metrics = evaluate_model(
        model,
        EoMTImageProcessor(task="panoptic", size=64),
        dataset.with_transform(EvaluationTransform(space, task="panoptic")),
        task="panoptic",
        label_space=space,
        intermediate=True,
        progress=False,
    )
    assert "pq_block_1" in metrics
    assert "pq_block_0" not in metrics


class Many(torch.utils.data.Dataset):
    """`count` images of one size, drawn on the fly."""

    def __init__(self, count: int):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index >= self.count:
            raise IndexError(index)
        rng = np.random.default_rng(index)
        image = torch.from_numpy(rng.integers(0, 255, (3, 300, 400), dtype=np.uint8))
        labels = np.full((300, 400), index % 8, np.int32)
        return {"image": image, "reference": labels, "image_id": index, "file_name": str(index)}


def test_memory_does_not_grow_with_the_number_of_images():
    """Peak resident memory over 90 images is that over 10. Kept predictions alone would add 80 × 0.5 MB."""
    script = f"""
import resource, sys, torch
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_evaluation import Many, tiny_model
from eomt.configuration.labels import LabelSpace
from eomt.image_processing import EoMTImageProcessor
from eomt.training.evaluation import evaluate_model
torch.set_num_threads(1)
model, processor = tiny_model("semantic"), EoMTImageProcessor(task="semantic", size=64)
space = LabelSpace("synthetic", [str(i) for i in range(8)])
model.set_attn_mask_probs([0.0])
for count in (10, 10, 90):
    evaluate_model(model, processor, Many(count), task="semantic", label_space=space, batch_size=2, progress=False)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
    environment = os.environ | ENVIRONMENT
    out = subprocess.run([sys.executable, "-c", script], check=True, env=environment, timeout=300, capture_output=True)
    _, few, many = map(float, out.stdout.split())
    assert many - few < 20


def test_an_unknown_task_is_refused():
    with pytest.raises(ValueError, match="there is no task 'depth'"):
        evaluate_model(None, None, [], task="depth", label_space=LabelSpace("x", ["a"]))


if __name__ == "__main__":
    import torch.distributed as dist

    dist.init_process_group("gloo")
    results = {task: evaluated(sys.argv[1], task, batch_size=2) for task in KEY}
    Path(sys.argv[2], f"{dist.get_rank()}.json").write_text(json.dumps(results))
    dist.destroy_process_group()
