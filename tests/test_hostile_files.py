"""Damaged files of every kind that a command reads: one line that says so or a result, never a traceback, a hang, more
memory than the input warrants, or a file outside of the output folder.

A small sample runs by default; `pytest -m slow` runs EOMT_HOSTILE_CASES (500) of each kind. A failure names its seed.
"""

import contextlib
import io
import os
import random
import resource
import shutil
import signal
import traceback

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle
from transformers import EomtConfig, EomtForUniversalSegmentation
from transformers import EomtImageProcessor as BuiltInProcessor

from eomt import EoMTImageProcessor
from eomt.cli import main
from eomt.modeling_eomt import convert_to_authors
from eomt.results import Results
from eomt.training.data import load_data

from .models import tiny_model
from .mutations import damage_bytes, damage_json
from .training.data.synthetic import (
    SIZE,
    instance_json,
    panoptic_ids,
    panoptic_json,
    panoptic_png,
    picture,
    png,
    write,
    zipped,
)

SLOW_CASES = int(os.environ.get("EOMT_HOSTILE_CASES", "500"))
SECONDS = 30  # a case takes a fraction of one
MEGABYTES = 1500  # more than the process had before
EVALUATE = ("evaluate", "--workers", "0", "--device", "cpu", "--predictions", "predictions", "--data")
PREDICT = ("predict", "photos", "--output", "out", "--workers", "0", "--device", "cpu", "--model", "model")
PREDICT_HUB = (*PREDICT[:-1], "hub")

KINDS = {  # name → (files to damage, how, command)
    "config": (["model/config.json"], damage_json, PREDICT),
    "processor": (["model/preprocessor_config.json"], damage_json, PREDICT),
    "hub's config": (["hub/config.json"], damage_json, PREDICT_HUB),
    "hub's processor": (["hub/preprocessor_config.json"], damage_json, PREDICT_HUB),
    "weights": (["model/model.safetensors"], damage_bytes, PREDICT),
    "photo": (["photos/a.jpg", "photos/b.png", "photos/c.tif", "photos/d.gif"], damage_bytes, PREDICT),
    "coco panoptic": (["panoptic/val.json"], damage_json, (*EVALUATE, "panoptic", "--task", "panoptic")),
    "coco instance": (["instance/val.json"], damage_json, (*EVALUATE, "instance", "--task", "instance")),
    "images and labels": (
        ["semantic/images/a.jpg", "semantic/labels/a.png", "semantic/classes.json"],
        damage_bytes,
        (*EVALUATE, "semantic", "--task", "semantic"),
    ),
    "class names": (["semantic/classes.json"], damage_json, (*EVALUATE, "semantic", "--task", "semantic")),
    "yolo": (["yolo/data.yaml", "yolo/labels/a.txt"], damage_bytes, (*EVALUATE, "yolo", "--task", "instance")),
    "zip": (["semantic.zip"], damage_bytes, (*EVALUATE, "semantic.zip", "--task", "semantic")),
    "panoptic predictions": (
        ["predictions/panoptic.json", "predictions/images.json"],
        damage_json,
        (*EVALUATE, "panoptic", "--task", "panoptic"),
    ),
    "instance predictions": (
        ["predictions/instances.json", "predictions/images.json"],
        damage_json,
        (*EVALUATE, "instance", "--task", "instance"),
    ),
    "authors' checkpoint": (["authors.bin"], damage_bytes, ("convert", "authors.bin", "converted", "--heads", "2")),
    "label names": (
        ["names.json"],
        damage_json,
        ("convert", "authors.bin", "converted", "--heads", "2", "--labels", "names.json"),
    ),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A folder in which every command of KINDS succeeds; each case works in a copy of what it needs."""
    root = tmp_path_factory.mktemp("good")
    model = tiny_model(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_blocks=1, num_labels=2)
    model.save_pretrained(root / "model")
    EoMTImageProcessor(task="panoptic", size=64).save_pretrained(root / "model")
    theirs = EomtConfig(image_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_blocks=1)
    EomtForUniversalSegmentation(theirs).save_pretrained(root / "hub")  # as plain transformers, without a task
    BuiltInProcessor(do_pad=True, size={"shortest_edge": 64, "longest_edge": 64}).save_pretrained(root / "hub")
    torch.save(convert_to_authors(model), root / "authors.bin")
    for name in ("a.jpg", "b.png", "c.tif", "d.gif"):
        (root / "photos").mkdir(exist_ok=True)
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)).save(root / "photos" / name)
    label = png(np.arange(SIZE[1])[None].repeat(SIZE[0], 0) % 2)
    semantic = {"images/a.jpg": picture(), "labels/a.png": label, "classes.json": {"0": "sky", "1": "road"}}
    polygon = "0 0.1 0.1 0.5 0.1 0.5 0.5\n1 0 0 1 0 1 1 0 1\n"
    yolo = {"images/a.jpg": picture(), "labels/a.txt": polygon, "data.yaml": "names: [cat, dog]\nnc: 2\n"}
    photos = {f"images/0000000000{n}.jpg": picture() for n in ("09", "10")}
    ids = {"val/000000000010.png": panoptic_ids(), "val/000000000009.png": np.zeros(SIZE, int)}
    coco = {"val.json": panoptic_json()} | {name: panoptic_png(values) for name, values in ids.items()}
    for name, files in (("semantic", semantic), ("yolo", yolo), ("panoptic", photos | coco)):
        write(root / name, files)
    write(root / "instance", photos | {"val.json": instance_json()})
    write(root, {"semantic.zip": zipped(semantic), "names.json": ["sky", "road"]})
    return root


def needed(good, folder, command, kind: str) -> None:
    """Copy what a command reads, with predictions that fit where it reads some."""
    for part in command:
        if (good / part).is_dir():
            shutil.copytree(good / part, folder / part, dirs_exist_ok=True)
        elif (good / part).is_file():
            shutil.copy(good / part, folder / part)
    if command[0] == "evaluate":
        data, task = folder / command[command.index("--data") + 1], command[-1]
        dataset, space = load_data(data, task=task, split="val")
        results = Results(folder / "predictions", task, space)
        for row in dataset:
            results.write(str(row["image_id"]), row["file_name"], prediction(task), row["image_id"])
        results.finish(map(str, dataset["image_id"][:]))


def prediction(task: str):
    left = torch.arange(SIZE[1])[None].repeat(SIZE[0], 1) < 5
    if task == "semantic":
        return {"segmentation": left.int()}
    if task == "panoptic":
        return {"segmentation": left.int(), "segments_info": [{"id": i, "label_id": i} for i in range(2)]}
    masks = [rle.encode(np.asfortranarray(mask.numpy().astype(np.uint8))) for mask in (left, ~left)]
    return {"size": SIZE, "masks": masks, "labels": torch.tensor([0, 1]), "scores": torch.tensor([0.9, 0.5])}


def run(command) -> str:
    """What is wrong with how a command ended, "" where nothing is."""

    def late(*_):
        raise TimeoutError("took too long")

    error = io.StringIO()
    signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(error):
            code = main(list(command))
    except BaseException:
        return traceback.format_exc()
    finally:
        signal.alarm(0)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    lines = [line for line in error.getvalue().replace("\r", "\n").splitlines() if line.startswith("eomt ")]
    if "took too long" in error.getvalue() or grown > MEGABYTES:
        return f"{grown:.0f} MB more, {error.getvalue()[-300:]}"
    if code not in (0, 1, 2) or "Traceback" in error.getvalue() or (code and not lines):
        return f"exit code {code}: {error.getvalue()[-2000:]}"
    return ""


def hostile(good, tmp_path, monkeypatch, kind: str, seeds) -> list[str]:
    """The failures of one kind: their seed, the file, and what happened."""
    files, damage, command = KINDS[kind]
    base = tmp_path / "base"
    base.mkdir()
    needed(good, base, command, kind)
    monkeypatch.chdir(base)
    assert run(command) == "", "the command works on what is not damaged"
    shutil.rmtree(base / "out", ignore_errors=True)
    shutil.rmtree(base / "converted", ignore_errors=True)
    failures = []
    for seed in seeds:
        rng = random.Random(f"{kind} {seed}")
        folder = tmp_path / f"case-{seed}"  # a new path: archives stay open
        shutil.copytree(base, folder)
        name = rng.choice(files)
        (folder / name).write_bytes(damage((folder / name).read_bytes(), rng))
        monkeypatch.chdir(folder)
        if wrong := run(command):
            failures.append(f"{kind}, seed {seed}, {name}: {wrong}")
        beside = {path.name for path in tmp_path.iterdir()} - {"base", folder.name}
        if beside:
            failures.append(f"{kind}, seed {seed}, {name}: wrote {beside}")
        monkeypatch.chdir(tmp_path)
        shutil.rmtree(folder)
    return failures


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_of_damaged_files(good, tmp_path, monkeypatch, kind):
    assert hostile(good, tmp_path, monkeypatch, kind, range(4)) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files(good, tmp_path, monkeypatch, kind):
    failures = hostile(good, tmp_path, monkeypatch, kind, range(SLOW_CASES))
    assert not failures, f"{len(failures)} failures\n" + "\n".join(failures[:20])
