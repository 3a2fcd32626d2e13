"""Damaged files of every kind that a command reads: the command ends with one line or a result, without a traceback, a
hang, too much memory, or a file outside of the output folder.

One case of each kind runs by default, a hundred with `pytest -m slow`. A failure names its seed.
"""

import contextlib
import io
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
from tests.models import tiny_model
from tests.mutations import damage_bytes, damage_json
from tests.training.data import synthetic
from tests.training.data.synthetic import SIZE, picture, png, write

SECONDS = 30  # a case takes a fraction of one
MEGABYTES = 1500  # growth of the process
ON_CPU = "--workers 0 --device cpu"
DATA = {  # name: task
    "panoptic": "panoptic", "instance": "instance", "semantic": "semantic", "yolo": "instance",
    "semantic.zip": "semantic",
}  # fmt: skip
COMMANDS = {
    "predict": f"predict photos --output out {ON_CPU} --model model",
    "predict hub": f"predict photos --output out {ON_CPU} --model hub",
    **{name: f"evaluate {ON_CPU} --data {name} --task {task} --predictions {name}-out" for name, task in DATA.items()},
    "convert": "convert authors.bin converted --heads 2 --labels names.json",
}
LABEL_MAPS = ["semantic/images/a.jpg", "semantic/labels/a.png", "semantic/classes.json"]
PHOTOS = ["photos/a.jpg", "photos/b.png", "photos/c.tif", "photos/d.gif"]
KINDS = {  # name: command, files to damage, function that damages one
    "config": ("predict", ["model/config.json"], damage_json),
    "processor": ("predict", ["model/preprocessor_config.json"], damage_json),
    "weights": ("predict", ["model/model.safetensors"], damage_bytes),
    "photo": ("predict", PHOTOS, damage_bytes),
    "hub's config": ("predict hub", ["hub/config.json"], damage_json),
    "hub's processor": ("predict hub", ["hub/preprocessor_config.json"], damage_json),
    "coco panoptic": ("panoptic", ["panoptic/val.json"], damage_json),
    "panoptic predictions": ("panoptic", ["panoptic-out/panoptic.json", "panoptic-out/images.json"], damage_json),
    "coco instance": ("instance", ["instance/val.json"], damage_json),
    "instance predictions": ("instance", ["instance-out/instances.json", "instance-out/images.json"], damage_json),
    "images and labels": ("semantic", LABEL_MAPS, damage_bytes),
    "class names": ("semantic", ["semantic/classes.json"], damage_json),
    "yolo": ("yolo", ["yolo/data.yaml", "yolo/labels/a.txt"], damage_bytes),
    "zip": ("semantic.zip", ["semantic.zip"], damage_bytes),
    "authors' checkpoint": ("convert", ["authors.bin"], damage_bytes),
    "label names": ("convert", ["names.json"], damage_json),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A folder in which every command succeeds; each case works in a copy."""
    root = tmp_path_factory.mktemp("good")
    write_inputs(root)
    for name, task in DATA.items():
        write_predictions(root / name, root / f"{name}-out", task)
    for name, command in COMMANDS.items():
        with contextlib.chdir(shutil.copytree(root, tmp_path_factory.mktemp("works") / "copy")):
            assert run(command) == "", name
    return root


def write_inputs(root) -> None:
    model = tiny_model(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_blocks=1, num_labels=2)
    model.save_pretrained(root / "model")
    EoMTImageProcessor(task="panoptic", size=64).save_pretrained(root / "model")
    theirs = EomtConfig(image_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_blocks=1)
    EomtForUniversalSegmentation(theirs).save_pretrained(root / "hub")  # as plain transformers, without a task
    BuiltInProcessor(do_pad=True, size={"shortest_edge": 64, "longest_edge": 64}).save_pretrained(root / "hub")
    torch.save(convert_to_authors(model), root / "authors.bin")
    (root / "photos").mkdir()
    for photo in PHOTOS:
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)).save(root / photo)
    label = png(np.arange(SIZE[1])[None].repeat(SIZE[0], 0) % 2)
    semantic = {"images/a.jpg": picture(), "labels/a.png": label, "classes.json": {"0": "sky", "1": "road"}}
    polygon = "0 0.1 0.1 0.5 0.1 0.5 0.5\n1 0 0 1 0 1 1 0 1\n"
    yolo = {"images/a.jpg": picture(), "labels/a.txt": polygon, "data.yaml": "names: [cat, dog]\nnc: 2\n"}
    photos = {f"images/0000000000{n}.jpg": picture() for n in ("09", "10")}
    ids = {"val/000000000010.png": synthetic.panoptic_ids(), "val/000000000009.png": np.zeros(SIZE, int)}
    maps = {name: synthetic.panoptic_png(values) for name, values in ids.items()}
    write(root / "panoptic", photos | maps | {"val.json": synthetic.panoptic_json()})
    write(root / "instance", photos | {"val.json": synthetic.instance_json()})
    write(root / "semantic", semantic)
    write(root / "yolo", yolo)
    write(root, {"semantic.zip": synthetic.zipped(semantic), "names.json": ["sky", "road"]})


def write_predictions(data, folder, task: str) -> None:
    """Write the files of `eomt predict` for a data set: the left third of each image is a segment, the rest another."""
    dataset, space = load_data(data, task=task, split="val")
    results = Results(folder, task, space)
    left = torch.arange(SIZE[1])[None].repeat(SIZE[0], 1) < 5
    prediction = {"segmentation": left.int()}
    if task == "panoptic":
        prediction["segments_info"] = [{"id": i, "label_id": i} for i in range(2)]
    elif task == "instance":
        masks = [rle.encode(np.asfortranarray(mask.numpy().astype(np.uint8))) for mask in (left, ~left)]
        prediction = {"size": SIZE, "masks": masks, "labels": torch.tensor([0, 1]), "scores": torch.tensor([0.9, 0.5])}
    for row in dataset:
        results.write(str(row["image_id"]), row["file_name"], prediction, row["image_id"])
    results.finish(map(str, dataset["image_id"][:]))


def run(command: str) -> str:
    """Run a command. Returns its fault: a traceback, a hang, too much memory, an exit code without a line; else ""."""

    def end(*_):
        raise TimeoutError("took too long")

    error = io.StringIO()
    signal.signal(signal.SIGALRM, end)
    signal.alarm(SECONDS)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(error):
            code = main(command.split())
    except BaseException:
        return traceback.format_exc()
    finally:
        signal.alarm(0)
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    lines = [line for line in error.getvalue().replace("\r", "\n").splitlines() if line.startswith("eomt ")]
    if "took too long" in error.getvalue() or growth > MEGABYTES:
        return f"{growth:.0f} MB more, {error.getvalue()[-300:]}"
    if code not in (0, 1, 2) or "Traceback" in error.getvalue() or (code and not lines):
        return f"exit code {code}: {error.getvalue()[-2000:]}"
    return ""


@pytest.mark.parametrize("cases", [1, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_one_line_or_a_result(good, tmp_path, kind, cases):
    command, files, damage = KINDS[kind]
    failures = []
    for seed in range(cases):
        rng = random.Random(f"{kind} {seed}")
        folder = tmp_path / f"case-{seed}"  # always a new path, because archives stay open
        shutil.copytree(good, folder)
        name = rng.choice(files)
        (folder / name).write_bytes(damage((folder / name).read_bytes(), rng))
        with contextlib.chdir(folder):
            fault = run(COMMANDS[command])
        outside = {path.name for path in tmp_path.iterdir()} - {folder.name}
        if fault or outside:
            failures.append(f"{kind}, seed {seed}, {name}: {fault}, wrote {outside}")
        shutil.rmtree(folder)
    assert not failures, f"{len(failures)} failures\n" + "\n".join(failures[:20])
