"""Values for data without a recipe: from the data and from what the run starts with; whatever is given stays."""

import numpy as np
import pytest
from PIL import Image

from eomt import EoMTImageProcessor
from eomt.cli import main
from eomt.training import EoMTTrainingArguments
from eomt.training.data import load_data
from eomt.training.data.shapes import make_shapes
from eomt.training.options import DataOptions, ModelOptions
from eomt.training.setup import DataFacts, Start, choose_defaults, data_facts, default_choices, processor_of
from tests.training.tiny import tiny_model


def values(facts, task="instance", start="backbone", **options) -> dict:
    return {choice.name: choice.value for choice in default_choices(facts, task, start, **options)}


def test_facts_are_those_of_the_training_images(tmp_path):
    root = make_shapes(tmp_path / "shapes", train=5, val=2)
    table, _ = load_data(root, task="panoptic", split="train")
    facts = data_facts(table)
    counts = sorted(len(row["segments"]) for row in table)
    shares = [segment["area"] ** 0.5 / 108 for row in table for segment in row["segments"]]
    assert facts == DataFacts(5, 108, (counts[2], counts[-1]), pytest.approx(np.median(shares)))


def test_objects_of_yolo_files_are_measured(tmp_path):
    """Its text files have polygons and no areas: a square of half the height of an 80 × 40 image."""
    for folder in ("images", "labels"):
        (tmp_path / folder / "train").mkdir(parents=True)
    Image.new("RGB", (80, 40)).save(tmp_path / "images/train/a.png")
    (tmp_path / "labels/train/a.txt").write_text("0 0.25 0.25 0.5 0.25 0.5 0.75 0.25 0.75\n")
    (tmp_path / "data.yaml").write_text("names: [cell]\ntrain: images/train\n")
    table, _ = load_data(tmp_path, task="instance", split="train")
    assert data_facts(table) == DataFacts(1, 80, (1, 1), pytest.approx(20 / 80, abs=0.02))


def test_queries_follow_the_fullest_image():
    few, many, unknown = (values(DataFacts(120, 256, s)) for s in ((2, 8), (25, 111), None))
    assert few["num_queries"] < 111 < many["num_queries"] <= 300
    assert unknown["num_queries"] == 200
    assert "num_queries" not in values(DataFacts(120, 256, (25, 111)), start="eomt")  # they are trained


def test_size_and_points_follow_the_images():
    small, large = values(DataFacts(9, 250, None)), values(DataFacts(9, 3000, None))
    assert (small["image_size"], large["image_size"]) == ("256", "640")
    assert small["train_num_points"] < large["train_num_points"] <= 12544
    assert values(DataFacts(9, 3000, None), task="semantic")["image_size"] == "512"
    assert values(DataFacts(9, 3000, None), image_size=256)["train_num_points"] == small["train_num_points"]


def test_images_of_small_objects_are_enlarged():
    """Median objects of 12 of 256 pixels to at least 16; not beyond the task's size."""
    sizes = [values(DataFacts(9, 256, (30, 90), share))["image_size"] for share in (0.3, 16 / 256, 12 / 256, 0.005)]
    assert sizes == ["256", "256", "352", "640"]
    assert values(DataFacts(9, 256, (30, 90), 0.005), image_size=96)["train_num_points"] == 1024


def test_rates_follow_what_is_trained_already():
    backbone, trained, scratch = (values(DataFacts(9, 250, None), start=s) for s in ("backbone", "eomt", "scratch"))
    assert backbone["learning_rate"] > backbone["backbone_learning_rate"]
    assert trained["learning_rate"] == 1e-4
    assert scratch["llrd"] == 1.0


def test_length_is_steps_for_few_images_and_epochs_for_many():
    few, many = values(DataFacts(100, 250, None)), values(DataFacts(100_000, 250, None))
    assert few["num_train_epochs"] * 100 / few["total_batch_size"] >= 1000
    assert (many["num_train_epochs"], many["total_batch_size"]) == (12, 16)
    assert values(DataFacts(3, 250, None))["total_batch_size"] == 3


@pytest.mark.parametrize(
    ("images", "processes", "batch"), [(100, 1, 8), (100, 3, 9), (100, 6, 12), (100, 16, 16), (3, 2, 4), (9999, 3, 18)]
)
def test_batch_is_shared_by_any_number_of_processes(monkeypatch, images, processes, batch):
    chosen = values(DataFacts(images, 250, None), multiple=processes)["total_batch_size"]
    assert chosen == batch
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    args = object.__new__(EoMTTrainingArguments)  # without the process group a real WORLD_SIZE would wait for
    for total in (None, chosen):  # before the data is read, and after
        vars(args).update(
            recipe=None, total_batch_size=total, per_device_train_batch_size=None, gradient_accumulation_steps=None
        )
        args._fit_batches()
        assert args.total_batch_size % processes == 0
    assert args.total_batch_size == batch


def test_the_number_of_processes_reaches_the_choice(tmp_path, monkeypatch):
    train, _ = load_data(make_shapes(tmp_path / "data", train=4, val=1), task="panoptic", split="train")
    args = EoMTTrainingArguments(str(tmp_path / "run"), task="panoptic", use_cpu=True, report_to="none")
    monkeypatch.setattr(EoMTTrainingArguments, "world_size", 3)
    monkeypatch.setattr(EoMTTrainingArguments, "with_defaults", lambda self, values: values)
    model = ModelOptions(backbone="vit_small_patch14_reg4_dinov2")
    options = (DataOptions(data="data"), model, args)
    assert choose_defaults(data_facts(train), *options, Start("backbone"))[2]["total_batch_size"] == 6


@pytest.mark.parametrize(
    ("given", "total", "device", "accumulated"),
    [
        ({"per_device_train_batch_size": 1}, 8, 1, 8),
        ({"per_device_train_batch_size": 3}, 9, 3, 3),
        ({"gradient_accumulation_steps": 4}, 8, 2, 4),
        ({"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}, 4, 2, 2),
        ({"total_batch_size": 6, "per_device_train_batch_size": 2}, 6, 2, 3),
    ],
)
def test_a_given_share_of_the_batch_accumulates_the_rest(tmp_path, given, total, device, accumulated):
    train, _ = load_data(make_shapes(tmp_path / "data", train=20, val=1), task="panoptic", split="train")
    args = EoMTTrainingArguments(str(tmp_path / "run"), task="panoptic", use_cpu=True, report_to="none", **given)
    options = (DataOptions(data="data"), ModelOptions(), args)
    *_, args, _ = choose_defaults(data_facts(train), *options, Start("backbone"))
    assert (args.total_batch_size, args.per_device_train_batch_size) == (total, device)
    assert (args.gradient_accumulation_steps, args.num_train_epochs) == (accumulated, 100)


def test_the_length_follows_a_given_batch_size():
    chosen = values(DataFacts(1000, 250, None), batch_size=32)
    assert "total_batch_size" not in chosen
    assert chosen["num_train_epochs"] == 32  # 1,000 steps of 32 of 1,000 images


@pytest.mark.parametrize(("most", "count"), [(375, 300), (4, 50), (60, 90)])
def test_reasons_are_true_where_a_value_is_bounded(most, count):
    choices = default_choices(DataFacts(40, 256, (2, most)), "instance", "backbone")
    choice = next(choice for choice in choices if choice.name == "num_queries")
    assert choice.value == count
    assert str(most) in choice.reason


def test_every_choice_has_a_reason():
    choices = default_choices(DataFacts(120, 256, (25, 111)), "instance", "backbone", fast_bf16=True)
    assert all(choice.reason for choice in choices)


def test_the_checkpoints_own_processor_normalizes(tmp_path):
    """A checkpoint that was trained with mean 0.5 is fine-tuned with it, too."""
    model = tiny_model()
    model.save_pretrained(tmp_path)
    own = EoMTImageProcessor(task="panoptic", size=32, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    own.save_pretrained(tmp_path)
    processor = processor_of(Start("eomt", str(tmp_path), model.config), model)
    assert list(processor.image_mean) == list(processor.image_std) == [0.5] * 3
    assert processor.stuff_label_ids == [1]


TINY = (
    "--backbone vit_small_patch14_reg4_dinov2 --backbone-weights scratch --hidden-size 32 --num-hidden-layers 3 "
    "--num-attention-heads 2 --num-blocks 2 --patch-size 8 --max-steps 2 --use-cpu --dataloader-num-workers 0 "
    "--eval-strategy no"
)


@pytest.mark.parametrize(
    ("given", "printed", "absent"),
    [
        ("", ["--num-queries", "--learning-rate ", "--total-batch-size", "--image-size"], []),
        ("--num-queries 7 --learning-rate 1e-3 --image-size 64", ["--total-batch-size"], ["--num-queries", "rate "]),
    ],
)
def test_what_is_given_is_not_chosen(tmp_path, capsys, given, printed, absent):
    from transformers import AutoConfig

    root = make_shapes(tmp_path / "data", train=4, val=1)
    command = f"train --data {root} --task panoptic --output-dir {tmp_path / 'run'} {TINY} {given}"
    assert main(command.split()) == 0
    chosen = capsys.readouterr().out.partition("chosen for this data")[2].partition("task ")[0]
    assert all(name in chosen for name in printed)
    assert not any(name in chosen for name in absent)
    if given:
        assert AutoConfig.from_pretrained(tmp_path / "run").num_queries == 7
