"""Checkpoints of the hub: configurations and processors of plain transformers, without a task."""

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForUniversalSegmentation,
    EomtConfig,
    EomtDinov3Config,
    EomtDinov3ForUniversalSegmentation,
    EomtForUniversalSegmentation,
)
from transformers import EomtImageProcessor as BuiltInProcessor

import eomt
from eomt.cli import main
from eomt.configuration import checkpoint
from eomt.configuration.labels import known_labels, label_space

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_blocks": 1}
SMALL |= {"image_size": 32, "num_upscale_blocks": 1}
PADDED = {"do_pad": True, "do_split_image": False, "size": {"shortest_edge": 32, "longest_edge": 32}}
WINDOWS = {"do_pad": False, "do_split_image": True, "size": {"shortest_edge": 32, "longest_edge": None}}
# Family, label space, queries and processor on the hub, and the task. The DINOv3 model for ADE20K pads.
HUB = {
    "coco_panoptic_eomt_large_640": ("dinov2", "coco_panoptic", 200, PADDED, "panoptic"),
    "coco_instance_eomt_large_640": ("dinov2", "coco_instance", 200, PADDED, "instance"),
    "ade20k_panoptic_eomt_large_640": ("dinov2", "ade20k_panoptic", 200, PADDED, "panoptic"),
    "ade20k_semantic_eomt_large_512": ("dinov2", "ade20k_semantic", 100, WINDOWS, "semantic"),
    "cityscapes_semantic_eomt_large_1024": ("dinov2", "cityscapes_semantic", 100, WINDOWS, "semantic"),
    "eomt-dinov3-coco-instance-large-640": ("dinov3", "coco_instance", 200, PADDED, "instance"),
    "eomt-dinov3-ade-semantic-large-512": ("dinov3", "ade20k_semantic", 100, PADDED, "semantic"),
}


def write_hub_folder(folder, family, space, queries, processor, weights=True, **fields):
    """Write a repository with transformers' classes."""
    names = label_space(space).id2label if isinstance(space, str) else dict(enumerate(space))
    config_class = EomtDinov3Config if family == "dinov3" else EomtConfig
    labels = {"id2label": names, "label2id": {name: i for i, name in names.items()}}
    wide = {"intermediate_size": 64} if family == "dinov3" else {}
    config = config_class(**{**SMALL, **wide, **labels, "num_queries": queries, **fields})
    if weights:
        torch.manual_seed(0)
        model_class = EomtDinov3ForUniversalSegmentation if family == "dinov3" else EomtForUniversalSegmentation
        model = model_class(config)
        model.attn_mask_probs.zero_()
        model.save_pretrained(folder)
    else:
        config.save_pretrained(folder)
    BuiltInProcessor(**processor).save_pretrained(folder)
    assert "task" not in json.loads((folder / "config.json").read_text())
    return folder


def loaded(folder, **kwargs):
    return AutoConfig.from_pretrained(folder, **kwargs), AutoImageProcessor.from_pretrained(folder, **kwargs)


@pytest.mark.parametrize("name", HUB)
@pytest.mark.parametrize("renamed", [False, True], ids=["hub_name", "any_name"])
def test_the_task_is_inferred_and_saved(name, renamed, tmp_path, caplog):
    *contents, task = HUB[name]
    folder = write_hub_folder(tmp_path / ("checkpoint" if renamed else name), *contents, weights=False)
    config, processor = loaded(folder)
    stuff = list(label_space(contents[1]).stuff_label_ids) if task == "panoptic" else []
    for _ in range(2):
        assert (config.task, processor.task) == (task, task)
        assert (config.stuff_label_ids, processor.stuff_label_ids or []) == (stuff, stuff)
        assert (processor.do_split_image, processor.do_pad) == (task == "semantic", task != "semantic")
        config.save_pretrained(tmp_path / "saved")
        processor.save_pretrained(tmp_path / "saved")
        config, processor = loaded(tmp_path / "saved")
    assert "task=" not in caplog.text
    assert eomt.EoMTImageProcessor.from_pretrained(folder).task == task
    other = "instance" if task == "panoptic" else "panoptic"
    config, processor = loaded(folder, task=other)
    assert (config.task, processor.task, processor.do_split_image) == (other, other, False)


CARDS = {
    "coco_panoptic_eomt_large_640": "coco_panoptic_eomt_large_640",
    "cityscapes_semantic_eomt_large_1024": "cityscapes_semantic_eomt_large_1024",
    "coco_instance_eomt_large_640_dinov3": "eomt-dinov3-coco-instance-large-640",
    "ade20k_semantic_eomt_large_512_dinov3": "eomt-dinov3-ade-semantic-large-512",
}


@pytest.mark.parametrize("recipe", CARDS)
def test_the_code_of_a_card_runs(recipe, tmp_path, monkeypatch):
    card = (Path(__file__).parent.parent / "model_cards" / f"{recipe}.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    name = CARDS[recipe]
    *contents, task = HUB[name]
    write_hub_folder(tmp_path / "tue-mps" / name, *contents)  # a folder with the name of the repository
    Image.new("RGB", (60, 32), "white").save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(code, found)
    assert isinstance(found["segment"].model, eomt.EoMTForUniversalSegmentation)
    assert found["segment"].image_processor.task == task


def test_the_task_is_inferred_from_either_file(tmp_path):
    folder = write_hub_folder(tmp_path / "a", "dinov2", ["cell", "tissue"], 200, WINDOWS, weights=False)
    assert [part.task for part in loaded(folder)] == ["semantic", "semantic"]  # by the windows
    folder = write_hub_folder(tmp_path / "nuclei-instance", "dinov2", ["cell", "tissue"], 200, PADDED, weights=False)
    assert [part.task for part in loaded(folder)] == ["instance", "instance"]  # by the name
    eomt.EoMTConfig(**SMALL, num_labels=2, task="instance", stuff_label_ids=[1]).save_pretrained(tmp_path / "a")
    config, processor = loaded(tmp_path / "a")
    assert (config.task, processor.task, processor.stuff_label_ids) == ("instance", "instance", [1])
    write_hub_folder(tmp_path / "b", "dinov2", ["cell", "tissue"], 200, PADDED, weights=False)
    eomt.EoMTImageProcessor(task="semantic", size=32).save_pretrained(tmp_path / "b")
    assert [part.task for part in loaded(tmp_path / "b")] == ["semantic", "semantic"]


def test_an_undecided_task_is_logged(tmp_path, monkeypatch):
    warnings = []
    monkeypatch.setattr(checkpoint.logger, "warning_once", warnings.append)
    folder = write_hub_folder(tmp_path / "cells", "dinov2", ["cell", "tissue"], 200, PADDED, weights=False)
    config, processor = loaded(folder)
    assert (config.task, processor.task) == ("panoptic", "panoptic")
    assert len(set(warnings)) == 1
    assert "task='panoptic'" in warnings[0]


def test_known_labels_are_recognized_in_other_spellings():
    ade = label_space("ade20k_semantic").names
    spelled = {str(i): f"{name.title()}, something " for i, name in enumerate(ade)}
    assert known_labels(spelled).dataset_ids == label_space("ade20k_semantic").dataset_ids
    assert known_labels({str(i): f"LABEL_{i}" for i in range(133)}) is None
    assert known_labels(dict(enumerate(ade[:149]))) is None


def test_predict_uses_the_task_and_a_model_saves_it(tmp_path):
    *contents, task = HUB["coco_instance_eomt_large_640"]
    folder = write_hub_folder(tmp_path / "model", *contents)
    Image.new("RGB", (60, 32), "white").save(tmp_path / "photo.png")
    run = ["predict", str(tmp_path / "photo.png"), "--model", str(folder), "--no-overlays", "--device", "cpu"]
    assert main([*run, "--output", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "run.json").read_text())["task"] == task
    model = AutoModelForUniversalSegmentation.from_pretrained(folder)
    model.save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["task"] == task
