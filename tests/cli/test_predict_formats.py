"""`eomt predict --formats` and `--as-dataset`, and `eomt.segment`: the same segments in other words."""

import csv
import io
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle
from transformers import AutoModelForUniversalSegmentation

import eomt
from eomt.inference.result_formats import polygons
from eomt.training import EoMTTrainingArguments
from eomt.training.data import load_data
from eomt.training.data.decode import decode
from eomt.training.options import DataOptions
from eomt.training.run_setup import with_more
from tests.models import tiny_model
from tests.predicting import SIZES, predict


def area_and_box(mask):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
    return [int(mask.sum()), *map(int, box)]


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_the_table_and_the_polygons_are_the_segments(models, photos, tmp_path, task):
    assert predict(photos, models[task], tmp_path / "out", "--no-overlays", "--formats", "csv", "polygons") == 0
    listed = json.loads((tmp_path / "out/polygons.json").read_text())
    rows = list(csv.DictReader((tmp_path / "out/segments.csv").open()))
    assert [c["name"] for c in listed["categories"]] == [f"LABEL_{i}" for i in range(5)]
    names = {}
    for image in listed["images"]:
        found = eomt.segment(photos / image["file_name"], models[task])
        mine = [row for row in rows if row["file_name"] == image["file_name"]]
        kept = [k for k, mask in enumerate(found.masks) if mask.any()]
        assert [row["category"] for row in mine] == [found.names[k] for k in kept]
        for row, k in zip(mine, kept):
            assert [int(float(row[key])) for key in ("area", "x", "y", "width", "height")] == area_and_box(
                found.masks[k]
            )
            if task != "semantic":
                assert float(row["score"]) == pytest.approx(found.scores[k], abs=1e-6)
        names[image["file_name"]] = len(kept)
    assert sum(names.values()) == len(rows) > 3
    if task == "instance":
        assert len(json.loads((tmp_path / "out/instances.json").read_text())) > len(rows)  # all, for scoring


def disk(size, row, column, radius):
    y, x = np.mgrid[:size, :size]
    return (y - row) ** 2 + (x - column) ** 2 < radius**2


def test_polygons_enclose_their_mask():
    mask = disk(60, 20, 22, 15) | disk(60, 45, 50, 8)
    mask[0:3, 57:60] = True  # in the corner
    found = polygons(mask)
    assert len(found) == 3
    drawn = rle.decode(rle.merge(rle.frPyObjects(found, 60, 60))).astype(bool)
    assert (drawn & mask).sum() / (drawn | mask).sum() > 0.97
    assert (drawn & mask).sum() > (np.roll(drawn, 1, 0) & mask).sum()  # not off by one
    assert (drawn & mask).sum() > (np.roll(drawn, 1, 1) & mask).sum()
    hole = mask & ~disk(60, 20, 22, 5)
    assert polygons(hole) == found  # filled
    assert polygons(np.zeros((4, 4), bool)) == []
    assert len(polygons(np.eye(1, dtype=bool))) == 1


def test_yolo_reads_back(models, photos, tmp_path):
    assert predict(photos, models["instance"], tmp_path / "out", "--no-overlays", "--formats", "yolo") == 0
    data = tmp_path / "data"
    for kind, suffix, source in (("images", ".png", photos), ("labels", ".txt", tmp_path / "out/yolo")):
        (data / kind).mkdir(parents=True)
        for name in SIZES:
            (data / kind / f"{name}{suffix}").write_bytes((source / f"{name}{suffix}").read_bytes())
    (data / "data.yaml").write_text((tmp_path / "out/yolo/data.yaml").read_text())
    table, space = load_data(data, task="instance", split="train")
    assert space.names == tuple(f"LABEL_{i}" for i in range(5))
    found = json.loads((tmp_path / "out/instances.json").read_text())
    compared = 0
    for row in table:
        sample = decode(row, space)
        (image,) = [int(row["image_id"])]
        shown = [e for e in found if e["image_id"] == image and e["score"] >= 0.5]
        masks = [rle.decode(e["segmentation"]) for e in shown if rle.area(e["segmentation"])]
        read = [rle.decode(r).astype(bool) for r in sample.rles]
        for mask in masks:
            if len(polygons(mask.astype(bool))) == 1 and mask.sum() > 200:
                overlaps = [(r & (mask > 0)).sum() / (r | (mask > 0)).sum() for r in read]
                assert max(overlaps) > 0.8  # holes are filled
                compared += 1
    assert compared


def test_things_only_and_not_for_semantic(models, photos, tmp_path, capsys):
    options = ("--no-overlays", "--formats", "yolo", "--threshold", "0.3")
    assert predict(photos, models["panoptic"], tmp_path / "out", *options) == 0
    classes = {
        line.split()[0] for name in SIZES for line in (tmp_path / f"out/yolo/{name}.txt").read_text().splitlines()
    }
    assert classes <= {"0", "1", "2"}  # 3 and 4 are stuff
    assert predict(photos, models["semantic"], tmp_path / "none", *options[:3]) == 2
    assert "--formats yolo is for things" in capsys.readouterr().err
    assert predict(photos, models["semantic"], tmp_path / "none", *options[3:]) == 2
    assert "--threshold 0.3 is not for semantic segmentation" in capsys.readouterr().err


@pytest.mark.parametrize("task", ["panoptic", "instance", "semantic"])
def test_predictions_as_a_data_set(models, photos, tmp_path, capsys, task):
    lowest = {"panoptic": 0.1, "instance": 0.0, "semantic": 0.0}[task]
    every = [score for path in photos.iterdir() for score in eomt.segment(path, models[task], threshold=lowest).scores]
    least = sum(sorted(every)[-2:]) / 2  # the best counts, the next are less sure
    options = ("--no-overlays", "--as-dataset", str(tmp_path / "data"), "--least-score", str(least))
    options += ("--threshold", "0.1") if task == "panoptic" else ()
    assert predict(photos, models[task], tmp_path / "out", *options) == 0
    assert "3 images with pseudo-labels: eomt train --data" in capsys.readouterr().out
    table, space = load_data(tmp_path / "data", task=task, split="train")
    assert space.names == tuple(f"LABEL_{i}" for i in range(5))
    assert len(table) == 3
    learned = ignored = 0
    for row in table:
        sample = decode(row, space)
        name = row["file_name"].rpartition("/")[2]
        found = eomt.segment(photos / name, models[task], threshold=lowest)
        assert np.array_equal(sample.image.permute(1, 2, 0), found.image)
        if task == "instance":
            crowds = [s["iscrowd"] for s in sample.segments]
            scores = [score for score, mask in zip(found.scores, found.masks) if mask.any() and score >= least / 2]
            assert crowds == [int(score < least) for score in scores]
            learned, ignored = learned + crowds.count(0), ignored + crowds.count(1)
        elif task == "panoptic":
            sure = [k for k, score in enumerate(found.scores) if score >= least]
            assert [s["label_id"] for s in sample.segments] == [found.labels[k] for k in sure]
            assert np.array_equal(sample.ids >= 0, found.masks[sure].any(0))
            learned, ignored = learned + len(sure), ignored + len(found) - len(sure)
        else:
            agreeing = sum((sample.ids == label)[mask].sum() for label, mask in zip(found.labels, found.masks))
            assert agreeing == (sample.ids >= 0).sum()
            learned, ignored = learned + agreeing, ignored + (sample.ids < 0).sum()
    assert learned
    assert ignored
    own = DataOptions(data=str(tmp_path / "data"), more_data=str(tmp_path / "data"), dataset="auto")
    arguments = EoMTTrainingArguments(str(tmp_path / "run"), task=task, use_cpu=True)
    both, values = with_more(table, own, arguments, space)
    assert len(both) == 6
    assert values == space
    assert predict(photos, models[task], tmp_path / "other", *options) == 2
    assert "exists" in capsys.readouterr().err


def test_a_folder_that_was_trained_anew_is_loaded_anew(models, photos, tmp_path, monkeypatch):
    photo = next(photos.iterdir())
    monkeypatch.chdir(tmp_path)
    shutil.copytree(models["semantic"], "model")
    before = eomt.segment(photo, "model")
    model = AutoModelForUniversalSegmentation.from_pretrained("model")
    with torch.no_grad():
        model.class_predictor.bias[2] += 100
    model.save_pretrained("model")
    assert eomt.segment(photo, "model").names == ["LABEL_2"] != before.names


def test_one_photo_or_several(models, photos):
    paths = sorted(photos.iterdir())
    found = eomt.segment(paths, models["panoptic"], threshold=0.3, batch_size=2)
    assert [f.image.size for f in found] == [Image.open(path).size for path in paths]
    assert sum(map(len, found)) > 2
    model = AutoModelForUniversalSegmentation.from_pretrained(models["panoptic"]).train()
    model.set_attn_mask_probs([1, 0.5])
    again = eomt.segment(np.asarray(Image.open(paths[0])), model, threshold=0.3)
    assert (model.training, model.attn_mask_probs.tolist()) == (True, [1, 0.5])
    assert np.array_equal(again.masks, found[0].masks)
    assert (again.names, again.scores) == (found[0].names, pytest.approx(found[0].scores))
    assert again.picture().size[0] >= found[0].image.width
    with pytest.raises(ValueError, match=r"there is no model in './none'"):
        eomt.segment(paths[0], "./none")
    with pytest.raises(ValueError, match="task is 'panotic'; choose from"):
        eomt.segment(paths[0], model, task="panotic")
    assert repr(found[0]).startswith(f"Segmentation(panoptic, {found[0].image.width} × {found[0].image.height}: LABEL_")
    assert Image.open(io.BytesIO(found[0]._repr_png_())).size == found[0].picture().size
    for image, options, message in (
        (photos, {}, "is a folder; give its images"),
        (42, {}, "an image is of type int; give a path"),
        (paths[0], {"threshold": 3}, "threshold is 3; give a probability from 0 to 1"),
        (paths[0], {"device": "nonsense"}, "device nonsense cannot be used here"),
    ):
        with pytest.raises(ValueError, match=message):
            eomt.segment(image, model, **options)
    with pytest.raises(ValueError, match=r"no image processor where the model is from \(''\); pass processor="):
        eomt.segment(paths[0], tiny_model())


def test_pseudo_labels_of_colors_can_be_added(models, photos, tmp_path):
    """Their void is a color of no class; a class of another value is an error and not learned as another class."""
    model = AutoModelForUniversalSegmentation.from_pretrained(models["semantic"])
    ids = [0xFFFFFF, 0x0000FF, 0x00FF00, 0xFF0000, 0x010203]
    model.config.dataset_ids = {f"LABEL_{i}": value for i, value in enumerate(ids)}
    model.save_pretrained(tmp_path / "model")
    shutil.copy(models["semantic"] / "preprocessor_config.json", tmp_path / "model")
    options = ("--no-overlays", "--as-dataset", str(tmp_path / "data"), "--least-score", "0.5")
    assert predict(photos, tmp_path / "model", tmp_path / "out", *options) == 0
    table, space = load_data(tmp_path / "data", task="semantic")
    assert set(space.dataset_ids) == set(ids)
    assert space.ignored_ids == (0xFEFEFE,)
    own = DataOptions(data="elsewhere", more_data=str(tmp_path / "data"), dataset="auto")
    arguments = EoMTTrainingArguments(str(tmp_path / "run"), task="semantic", use_cpu=True)
    _, values = with_more(table, own, arguments, replace(space, ignored_ids=()))
    assert values.ignored_ids == (0xFEFEFE,)
    other = replace(space, dataset_ids=tuple(i + 1 for i in space.dataset_ids))
    with pytest.raises(ValueError, match=r"its label images have \d+ for class 'LABEL_\d', not \d+; write them"):
        with_more(table, own, arguments, other)
