"""Defaults without a recipe, from the data and the initial weights; given options are kept."""

import numpy as np
import pytest
from PIL import Image
from transformers import AutoConfig

from eomt import EoMTImageProcessor
from eomt.cli import main
from eomt.training import EoMTTrainingArguments, defaults
from eomt.training.data import load_data
from eomt.training.data.load import tasks_of
from eomt.training.data.shapes import make_shapes
from eomt.training.defaults import DataFacts, choose_defaults, data_facts, default_choices
from eomt.training.options import DataOptions, ModelOptions
from eomt.training.start import Start, processor_of
from tests.training.tiny import tiny_model

FEW = DataFacts(9, 250, None)
LARGE = DataFacts(9, 3000, None)
BUSY = DataFacts(120, 256, (25, 111))
TINY_OBJECTS = DataFacts(9, 256, (30, 90), 0.005)


@pytest.mark.parametrize("task", ["panoptic", "instance"])  # both from panoptic annotations
def test_facts_of_the_training_images(tmp_path, task):
    root = make_shapes(tmp_path / "shapes", train=5, val=2)
    table, _ = load_data(root, task=task, split="train")
    facts = data_facts(table)
    counts = sorted(len(row["segments"]) for row in table)
    shares = [segment["area"] ** 0.5 / max(row["size"]) for row in table for segment in row["segments"]]
    assert facts == DataFacts(5, 108, (counts[2], counts[-1]), pytest.approx(np.median(shares)))


def test_objects_of_yolo_files_are_measured(tmp_path):
    """The polygon is a square of half the height of an 80 × 40 image. The text file has no area."""
    for folder in ("images", "labels"):
        (tmp_path / folder / "train").mkdir(parents=True)
    Image.new("RGB", (80, 40)).save(tmp_path / "images/train/a.png")
    (tmp_path / "labels/train/a.txt").write_text("0 0.25 0.25 0.5 0.25 0.5 0.75 0.25 0.75\n")
    (tmp_path / "data.yaml").write_text("names: [cell]\ntrain: images/train\n")
    table, _ = load_data(tmp_path, task="instance", split="train")
    assert data_facts(table) == DataFacts(1, 80, (1, 1), pytest.approx(20 / 80, abs=0.02))


@pytest.mark.parametrize(("facts", "options", "expected"), [
    (DataFacts(40, 256, (2, 4)), {}, {"num_queries": 50}),  # 1.5 times the busiest image, at least 50
    (DataFacts(40, 256, (2, 60)), {}, {"num_queries": 90}),
    (BUSY, {}, {"num_queries": 170}),
    (DataFacts(40, 256, (2, 375)), {}, {"num_queries": 300}),
    (BUSY, {"start": "eomt"}, {"num_queries": None, "learning_rate": 1e-4}),  # its queries are trained
    (FEW, {}, {"image_size": "256", "train_num_points": 2048, "num_queries": 200}),
    (LARGE, {}, {"image_size": "640", "train_num_points": 12544}),
    (LARGE, {"task": "semantic"}, {"image_size": "512", "num_queries": 100}),
    (LARGE, {"image_size": 256}, {"train_num_points": 2048}),
    (DataFacts(9, 256, (30, 90), 24 / 256), {}, {"image_size": "256"}),
    (DataFacts(9, 256, (30, 90), 12 / 256), {}, {"image_size": "512"}),  # objects of 12 pixels to at least 24
    (TINY_OBJECTS, {}, {"image_size": "640"}),
    (TINY_OBJECTS, {"patch_size": 14}, {"image_size": "616"}),
    (FEW, {"patch_size": 14}, {"image_size": "252"}),
    (TINY_OBJECTS, {"image_size": 96}, {"train_num_points": 1024}),
    (FEW, {"start": "backbone"}, {"learning_rate": 5e-4, "backbone_learning_rate": 1e-4}),
    (FEW, {"start": "scratch"}, {"learning_rate": 5e-4, "llrd": 1.0}),
    (DataFacts(3, 250, None), {}, {"total_batch_size": 3, "num_train_epochs": 100}),
    (DataFacts(100, 250, None), {}, {"total_batch_size": 8, "num_train_epochs": 80}),
    (DataFacts(100_000, 250, None), {}, {"total_batch_size": 16, "num_train_epochs": 12}),
    (DataFacts(1000, 250, None), {"batch_size": 32}, {"total_batch_size": None, "num_train_epochs": 32}),
    (BUSY, {"fast_bf16": True}, {"precision": "bf16"}),
])  # fmt: skip
def test_defaults_follow_the_data_and_the_initial_weights(facts, options, expected):
    choices = default_choices(facts, **({"task": "instance", "start": "backbone"} | options))
    values = {choice.name: choice.value for choice in choices}
    assert {name: values.get(name) for name in expected} == expected
    assert all(choice.reason for choice in choices)


def test_the_batch_size_is_a_multiple_of_the_processes(tmp_path, monkeypatch):
    args = EoMTTrainingArguments(str(tmp_path / "run"), task="panoptic", use_cpu=True, report_to="none")
    monkeypatch.setattr(EoMTTrainingArguments, "world_size", 3)
    monkeypatch.setattr(EoMTTrainingArguments, "with_defaults", lambda self, values: values)
    options = (DataOptions(data="data"), ModelOptions(backbone="vit_small_patch14_reg4_dinov2"), args)
    assert choose_defaults(DataFacts(4, 250, None), *options, Start("backbone"))[2]["total_batch_size"] == 6


def test_fewer_queries_than_segments_warn(tmp_path, monkeypatch):
    args = EoMTTrainingArguments(str(tmp_path / "run"), task="panoptic", use_cpu=True, report_to="none")
    model = tiny_model()
    options = (DataOptions(data="data"), ModelOptions(), args, Start("eomt", "runs/old", model.config))
    warnings = []
    monkeypatch.setattr(defaults.logger, "warning", warnings.append)
    choose_defaults(DataFacts(20, 108, (3, model.config.num_queries)), *options)
    assert not warnings
    choose_defaults(DataFacts(20, 108, (3, model.config.num_queries + 1)), *options)
    assert len(warnings) == 1


@pytest.mark.parametrize(("given", "total", "device", "accumulated"), [
    ({"per_device_train_batch_size": 1}, 8, 1, 8),
    ({"per_device_train_batch_size": 3}, 9, 3, 3),
    ({"gradient_accumulation_steps": 4}, 8, 2, 4),
    ({"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}, 4, 2, 2),
    ({"total_batch_size": 6, "per_device_train_batch_size": 2}, 6, 2, 3),
])  # fmt: skip
def test_a_given_share_of_the_batch_decides_the_accumulation(tmp_path, given, total, device, accumulated):
    args = EoMTTrainingArguments(str(tmp_path / "run"), task="panoptic", use_cpu=True, report_to="none", **given)
    options = (DataOptions(data="data"), ModelOptions(), args)
    *_, args, _ = choose_defaults(DataFacts(20, 108, (3, 8)), *options, Start("backbone"))
    assert (args.total_batch_size, args.per_device_train_batch_size) == (total, device)
    assert (args.gradient_accumulation_steps, args.num_train_epochs) == (accumulated, 100)


@pytest.mark.parametrize(("files", "tasks"), [
    (["annotations/panoptic_train2017.json", "annotations/instances_train2017.json"], ["panoptic", "instance"]),
    (["train/_annotations.coco.json"], ["instance"]),
    (["images/1.jpg", "labels/1.png"], ["semantic"]),
    (["data.yaml", "images/1.jpg", "labels/1.txt"], ["instance"]),
])  # fmt: skip
def test_tasks_are_those_of_the_ground_truth(tmp_path, files, tasks):
    for file in map(tmp_path.joinpath, files):
        file.parent.mkdir(exist_ok=True)
        file.write_text('{"images": [], "annotations": [], "categories": []}')
    assert tasks_of(tmp_path) == tasks


def test_the_normalization_of_the_checkpoint_is_kept(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    saved = EoMTImageProcessor(task="panoptic", size=32, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    saved.save_pretrained(tmp_path)
    processor = processor_of(Start("eomt", str(tmp_path), model.config), model)
    assert list(processor.image_mean) == list(processor.image_std) == [0.5] * 3
    assert processor.stuff_label_ids == [1]


@pytest.mark.parametrize(("name", "mean"), [
    ("vit_large_patch16_dinov3.sat493m", 0.43), ("vit_large_patch16_dinov3", 0.485), (None, 0.485)
])  # fmt: skip
def test_the_normalization_of_the_backbone_is_used(name, mean):
    assert processor_of(Start("backbone", backbone=name), tiny_model()).image_mean[0] == mean


def test_given_options_are_kept(tmp_path, capsys):
    tiny = (
        "--backbone vit_small_patch14_reg4_dinov2 --backbone-weights scratch --hidden-size 32 --num-hidden-layers 3 "
        "--num-attention-heads 2 --num-blocks 2 --patch-size 8 --max-steps 1 --use-cpu --dataloader-num-workers 0 "
        "--eval-strategy no --learning-rate 1e-3"
    )
    root = make_shapes(tmp_path / "data", train=2, val=1)
    command = f"train --data {root} --task panoptic --output-dir {tmp_path / 'run'} {tiny}"
    assert main(command.split()) == 0
    chosen = capsys.readouterr().out.partition("chosen for this data")[2].partition("task ")[0]
    assert all(name in chosen for name in ("--num-queries", "--total-batch-size", "--image-size"))
    assert "--learning-rate" not in chosen
    assert AutoConfig.from_pretrained(tmp_path / "run").num_queries == 50
