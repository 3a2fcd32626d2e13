"""Other classes on a panoptic checkpoint: stuff labels, saved configurations, and transformers' training example."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModelForUniversalSegmentation, Trainer, TrainingArguments

import eomt
from eomt import EoMTConfig, EoMTImageProcessor
from tests.models import tiny_model

NAMES = {0: "cat", 1: "dog", 2: "sky", 3: "sea", 4: "road"}
EIGHT = {label: f"part {label}" for label in range(8)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A panoptic model of five classes, three of them stuff, and its processor."""
    folder = tmp_path_factory.mktemp("panoptic")
    tiny_model(id2label=NAMES, stuff_label_ids=[2, 3, 4]).save_pretrained(folder)
    EoMTImageProcessor(task="panoptic", size=64, stuff_label_ids=[2, 3, 4]).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("changes", "stuff", "dropped"), [
        ({"num_labels": 3}, [], True),
        ({"num_labels": 3, "stuff_label_ids": []}, [], False),
        ({"num_labels": 3, "stuff_label_ids": [2]}, [2], False),
        ({"num_labels": 12}, [], True),
        ({"num_labels": 5}, [2, 3, 4], False),
        ({"id2label": EIGHT}, [], True),
        ({"id2label": EIGHT, "num_labels": 8, "stuff_label_ids": [7]}, [7], False),
        ({"id2label": NAMES | {4: "mud", 5: "tree"}}, [2, 3], True),
        ({"id2label": {str(label): name for label, name in NAMES.items()}}, [2, 3, 4], False),
], ids=str)  # fmt: skip
def test_stuff_labels_are_kept_for_classes_of_the_same_name(folder, tmp_path, caplog, changes, stuff, dropped):
    model = AutoModelForUniversalSegmentation.from_pretrained(folder, ignore_mismatched_sizes=True, **changes)
    labels = len(changes["id2label"]) if "id2label" in changes else changes["num_labels"]
    assert (model.config.num_labels, model.config.stuff_label_ids) == (labels, stuff)
    assert model.class_predictor.weight.shape == (labels + 1, 48)
    assert model.criterion.empty_weight.tolist() == pytest.approx([1] * labels + [0.1])
    assert sum("stuff_label_ids" in record.message for record in caplog.records) == dropped
    model.save_pretrained(tmp_path)
    loaded = AutoModelForUniversalSegmentation.from_pretrained(tmp_path)
    assert loaded.config.stuff_label_ids == stuff
    assert loaded.config.id2label == model.config.id2label


@pytest.mark.parametrize("set_first", [{"num_labels": 3}, {"num_labels": 12}, {"id2label": EIGHT}], ids=str)
def test_a_changed_configuration_is_saved_and_loaded(folder, tmp_path, set_first):
    config = AutoConfig.from_pretrained(folder)
    for name, value in set_first.items():
        setattr(config, name, value)
    assert config.stuff_label_ids == []
    config.save_pretrained(tmp_path)
    loaded = EoMTConfig.from_pretrained(tmp_path)
    assert (loaded.num_labels, loaded.stuff_label_ids) == (config.num_labels, [])


def test_transformers_instance_segmentation_example_runs(folder, tmp_path):
    """The calls of transformers' run_instance_segmentation.py (Trainer), with other classes and another size."""
    id2label = {0: "box", 1: "disc", 2: "bar", 3: "ring", 4: "cross", 5: "star", 6: "moon"}
    labels = {"id2label": id2label, "label2id": {name: label for label, name in id2label.items()}}
    model = AutoModelForUniversalSegmentation.from_pretrained(folder, **labels, ignore_mismatched_sizes=True)
    size = {"height": 32, "width": 32}
    options = {"do_reduce_labels": True, "reduce_labels": True, "token": None}
    processor = AutoImageProcessor.from_pretrained(folder, do_resize=True, size=size, **options)

    def sample(index):
        instances = np.zeros((40, 40), np.uint8)
        instances[4:20, 4:20], instances[22:36, 8:30] = 1, 2
        inputs = processor(
            images=[np.full((40, 40, 3), 40 * index, np.uint8)],
            segmentation_maps=[instances],
            instance_id_to_semantic_id={0: 0, 1: 1 + index % 2, 2: 7},
            return_tensors="pt",
        )
        return {name: inputs[name][0] for name in ("pixel_values", "mask_labels", "class_labels")}

    def collate(examples):
        batch = {name: [example[name] for example in examples] for name in ("mask_labels", "class_labels")}
        return batch | {"pixel_values": torch.stack([example["pixel_values"] for example in examples])}

    shapes = []

    def compute_metrics(results, compute_result=False):
        classes, masks = results.predictions[:2]
        shapes.append((classes.shape, masks.shape))
        outputs = eomt.modeling_eomt.outputs.EoMTForUniversalSegmentationOutput(
            class_queries_logits=classes, masks_queries_logits=masks
        )
        found = processor.post_process_instance_segmentation(
            outputs, threshold=0.0, target_sizes=[mask.shape[-2:] for mask in results.label_ids[0]],
            return_binary_maps=True,
        )  # fmt: skip
        return {"found": float(sum(len(image["segments_info"]) for image in found))} if compute_result else None

    args = TrainingArguments(
        str(tmp_path), max_steps=2, per_device_train_batch_size=2, per_device_eval_batch_size=2, eval_strategy="steps",
        eval_steps=1, eval_do_concat_batches=False, batch_eval_metrics=True, remove_unused_columns=False,
        report_to="none", use_cpu=True,
    )  # fmt: skip
    samples = [sample(index) for index in range(4)]
    trainer = Trainer(
        model, args, collate, samples, samples, processing_class=processor, compute_metrics=compute_metrics
    )
    trainer.train()
    assert trainer.evaluate()["eval_found"] > 0
    assert set(shapes) == {((2, 7, 8), (2, 7, 8, 8))}
    trainer.save_model()
    assert AutoModelForUniversalSegmentation.from_pretrained(tmp_path).config.id2label == id2label
