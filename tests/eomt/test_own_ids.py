"""Ids, names and splits of own data in every command."""

import json
import os
import shutil

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from eomt.cli import main
from eomt.configuration import EoMTConfig
from eomt.configuration.labels import LabelSpace
from eomt.training import EoMTTrainingArguments
from eomt.training.data import load_data
from eomt.training.data.load import hold_out
from eomt.training.options import DataOptions
from eomt.training.setup import load_split, require_apart
from tests.eomt.trained import SIZE, train
from tests.models import save_confident, tiny_config
from tests.predicting import predict


def evaluate(*arguments) -> int:
    return main(["evaluate", *map(str, arguments), "--workers", "0", "--device", "cpu"])


@pytest.fixture(scope="module")
def label_maps(own_data):
    return own_data / "semantic"


@pytest.fixture(scope="module")
def roboflow(own_data):
    return own_data / "instance"


def test_every_command_uses_the_ids_of_the_data(runs, label_maps, tmp_path, capsys):
    run = runs / "semantic"
    assert EoMTConfig.from_pretrained(run).dataset_ids == {"sky": 1, "road": 2, "car": 3}
    assert predict(label_maps / "val/images", run, tmp_path / "out") == 0
    written = np.asarray(Image.open(tmp_path / "out/labels/0.png"))
    assert set(np.unique(written)) <= {1, 2, 3}
    scores = []
    for source in (run, "--predictions"):
        more = [tmp_path / "out", "--task", "semantic"] if source == "--predictions" else []
        capsys.readouterr()
        assert evaluate(source, *more, "--data", label_maps, "--json", "--output", tmp_path / "report") == 0
        scores.append(json.loads(capsys.readouterr().out)["metrics"])
        table = (tmp_path / "report/per_class.csv").read_text()
        assert [line.split(",")[1:3] for line in table.splitlines()[1:]] == [["sky", "1"], ["road", "2"], ["car", "3"]]
    assert scores[0]["per_category_iou"] == scores[1]["per_category_iou"]
    values = np.asarray(Image.open(label_maps / "val/labels/0.png"))
    known = values != 255
    assert scores[0]["overall_accuracy"] == pytest.approx((written == values)[known].mean(), abs=0.05)


def test_predictions_with_other_ids_are_matched_by_name_or_refused(label_maps, tmp_path, capsys):
    """A model without dataset ids writes labels. They are matched by the class names, if it has names."""
    names = ["sky", "road", "car"]
    data = shutil.copytree(label_maps, tmp_path / "data")
    (data / "classes.json").write_text(json.dumps(dict(enumerate(names, 1))))
    scores = {}
    for name, classes in (("named", {"id2label": dict(enumerate(names))}), ("unnamed", {})):
        save_confident(tmp_path / name, task="semantic", num_labels=3, masked_inference=False, **classes)
        assert predict(data / "val/images", tmp_path / name, tmp_path / f"{name}-out") == 0
        assert np.asarray(Image.open(tmp_path / f"{name}-out/labels/0.png")).max() < 3
        capsys.readouterr()
        code = evaluate("--predictions", tmp_path / f"{name}-out", "--data", data, "--task", "semantic", "--json")
        scores[name] = code, capsys.readouterr()
    assert scores["named"][0] == 0
    found = json.loads(scores["named"][1].out)["metrics"]
    assert evaluate(tmp_path / "named", "--data", data, "--json") == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["per_category_iou"] == found["per_category_iou"]
    assert scores["unnamed"][0] == 2
    assert "'LABEL_0'" in scores["unnamed"][1].err


def test_roboflow_predictions_have_the_models_score(runs, roboflow, tmp_path, capsys):
    run = runs / "instance"
    assert EoMTConfig.from_pretrained(run).dataset_ids == {"red": 1, "white": 2}
    assert predict(roboflow / "valid", run, tmp_path / "out") == 0
    results = json.loads((tmp_path / "out/instances.json").read_text())
    ground_truth = json.loads((roboflow / "valid/_annotations.coco.json").read_text())
    assert {r["category_id"] for r in results} <= {1, 2}
    # perfect predictions with the image ids of `predict`
    images = json.loads((tmp_path / "out/images.json").read_text())["images"]
    ids = {image["file_name"]: image["id"] for image in images}
    names = {image["id"]: image["file_name"] for image in ground_truth["images"]}
    assert set(ids) == set(names.values())
    perfect = []
    for annotation in ground_truth["annotations"]:
        mask = rle.merge(rle.frPyObjects(annotation["segmentation"], *SIZE))
        mask["counts"] = mask["counts"].decode()
        image = ids[names[annotation["image_id"]]]
        category = annotation["category_id"]
        perfect.append({"image_id": image, "category_id": category, "segmentation": mask, "score": 0.9})
    (tmp_path / "out/instances.json").write_text(json.dumps(perfect))
    capsys.readouterr()
    assert evaluate("--predictions", tmp_path / "out", "--data", roboflow, "--task", "instance", "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["metrics"]["ap"] == pytest.approx(1)
    assert summary["images"] == 2
    assert summary["images_without_annotations"] == 0

    assert evaluate(run, "--data", roboflow, "--save-predictions", tmp_path / "server", "--json") == 0
    expected = json.loads(capsys.readouterr().out)["metrics"]["ap"]
    coco = COCO(str(roboflow / "valid/_annotations.coco.json"))
    saved = json.loads((tmp_path / "server/instances.json").read_text())
    evaluator = COCOeval(coco, coco.loadRes(saved), "segm")
    evaluator.params.catIds = [1, 2]
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    assert evaluator.stats[0] == pytest.approx(expected, abs=1e-6)


def test_dataset_ids_of_configurations_and_label_spaces(roboflow):
    _, space = load_data(roboflow, task="instance")
    config = EoMTConfig(**space.config_fields)
    assert LabelSpace.from_config(config).dataset_ids == (1, 2)
    config.id2label = {0: "cat", 1: "dog"}
    assert not LabelSpace.from_config(config).knows_dataset_ids
    absent = LabelSpace("some", ("a", "b", "c"), (), (-1, 7, -2))  # a and c are not in the data set
    assert absent.config_fields["dataset_ids"] == {"a": 8, "b": 7, "c": 9}
    with pytest.raises(ValueError, match="dataset_ids"):
        tiny_config(dataset_ids={"a": "x"})


def test_training_and_evaluate_use_the_same_images(roboflow, tmp_path, capsys):
    """Also images without segments, with and without a recipe, unless --no-keep-empty is given."""
    data = shutil.copytree(roboflow, tmp_path / "data")
    for split in ("train", "valid"):
        file = data / split / "_annotations.coco.json"
        content = json.loads(file.read_text())
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] == 0]
        file.write_text(json.dumps(content))
    args = EoMTTrainingArguments(str(tmp_path), recipe="coco_instance_eomt_large_640", use_cpu=True, report_to=[])
    splits = {split: len(load_split(DataOptions(data=str(data)), args, split)[0]) for split in ("train", "val")}
    assert splits == {"train": 1, "val": 2}
    save_confident(tmp_path / "model", task="instance", num_labels=2)
    assert evaluate(tmp_path / "model", "--data", data) == 0
    assert "2 images, 1 of them without annotations; --no-keep-empty leaves these out" in capsys.readouterr().out
    assert evaluate(tmp_path / "model", "--data", data, "--no-keep-empty") == 0
    assert "1 image; those without annotations are left out (--no-keep-empty)" in capsys.readouterr().out


def copies(label_maps, count: int, *folders: str):
    """Write images and label maps into `folders` in turn; {} stands for "images" or "labels"."""
    for i in range(count):
        for kind, suffix in (("images", "jpg"), ("labels", "png")):
            folder = folders[i % len(folders)].format(kind)
            os.makedirs(folder, exist_ok=True)
            shutil.copy(label_maps / "train" / kind / f"0.{suffix}", f"{folder}/{i}.{suffix}")


def test_every_command_divides_data_without_val_alike(label_maps, tmp_path, capsys):
    data, run = tmp_path / "data", tmp_path / "run"
    copies(label_maps, 12, f"{data}/{{}}")
    assert train(data, run, "semantic", "--max-steps", "1") == 0
    split = json.loads((run / "split.json").read_text())
    assert len(split["val"]) in range(1, 5)
    assert sorted(split["train"] + split["val"]) == sorted(f"images/{i}.jpg" for i in range(12))
    assert f"{len(split['val'])} of 12 images held out" in capsys.readouterr().out
    assert evaluate(run, "--data", data, "--save-predictions", tmp_path / "out") == 0
    images = json.loads((tmp_path / "out/images.json").read_text())["images"]
    assert sorted(image["file_name"] for image in images) == sorted(split["val"])
    assert evaluate(next(run.glob("checkpoint-*")), "--data", data) == 0
    assert capsys.readouterr().err.count(f"{len(images)} held-out images") == 2
    (run / "split.json").unlink()  # a model that was not trained on this data
    assert evaluate(run, "--data", data) == 0
    assert "12 images" in capsys.readouterr().out
    assert len(load_data(data, task="semantic", split="val")[0]) == 12


@pytest.mark.parametrize("folders", [
    ("Train/{0}", "Val/{0}"), ("{0}/train2017", "{0}/val2017"), ("{0}", "{0}"),
])  # fmt: skip
def test_no_image_is_in_both_splits(folders, label_maps, tmp_path):
    data = tmp_path / "my-test"  # not the name of a split
    copies(label_maps, 10, *(f"{data}/{folder}" for folder in folders))
    (data / "docs/test").mkdir(parents=True)
    (data / "docs/test/notes.txt").write_text("no image")
    rows = [
        load_data(data, task="semantic", split=split, automatic_split=True)[0].with_format(None)["file_name"][:]
        for split in ("train", "val")
    ]
    assert min(map(len, rows)) > 0
    assert sorted(rows[0] + rows[1]) == sorted({*rows[0], *rows[1]})
    assert len(rows[0] + rows[1]) == 10


def test_load_data_divides_data_on_request_only(label_maps, tmp_path):
    copies(label_maps, 4, f"{tmp_path}/train/{{}}")
    with pytest.raises(ValueError, match="'val'"):
        load_data(tmp_path, task="semantic", split="val")


def test_images_in_both_splits_are_refused_before_training(label_maps, tmp_path, capsys):
    data = tmp_path / "val"  # all images are the split val, and also the split train
    copies(label_maps, 6, f"{data}/{{}}")
    assert train(data, tmp_path / "run", "semantic") == 2
    assert "6 images" in capsys.readouterr().err


def test_an_image_is_the_same_by_another_path(label_maps, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    copies(label_maps, 6, "data/{}")
    train, _ = load_data("data", task="semantic", automatic_split=True)
    again, _ = load_data(tmp_path / "data", task="semantic", automatic_split=True)
    with pytest.raises(ValueError, match="5 images"):
        require_apart(train, again, "data")


def test_held_out_images_do_not_depend_on_empty_ones(tmp_path):
    """Each image with segments is in exactly one split, whether or not training keeps the others."""
    images = [{"id": i, "file_name": f"{i}.png", "height": 8, "width": 8} for i in range(20)]
    box = {"category_id": 1, "segmentation": [[1, 1, 6, 1, 6, 6]], "iscrowd": 0}
    annotations = [box | {"id": i + 1, "image_id": i} for i in range(20) if i % 3]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "a"}]}
    (tmp_path / "_annotations.coco.json").write_text(json.dumps(content))
    for image in images:
        Image.new("RGB", (8, 8)).save(tmp_path / image["file_name"])
    options = {"task": "instance", "automatic_split": True}
    parts = [load_data(tmp_path, split=split, **options)[0]["file_name"][:] for split in ("train", "val")]
    assert sorted(parts[0] + parts[1]) == sorted(image["file_name"] for image in images)
    without_empty, _ = load_data(tmp_path, split="train", keep_empty=False, **options)
    assert without_empty["file_name"][:] == [name for name in parts[0] if int(name[:-4]) % 3]


def test_at_least_one_image_is_trained_on():
    names = ["92e7e86e765e.png", "1ee4a111f0e0.png", "7ac468eb217b.png", "1c2f9e121fc2.png", "a.png"]
    table = Dataset.from_dict({"file_name": names})  # three have low hashes
    assert hold_out(table, "val")["file_name"][:] == ["7ac468eb217b.png"]
    assert len(hold_out(table, "train")) == 4
    assert len(hold_out(table.select(range(4)), "val")) == len(hold_out(table.select(range(4)), "train")) == 4
