"""A record of behavior: the log and score of a seeded tiny run of each task, and the files for given logits.

A change of a number in `record.json` is a change of behavior. `python -m tests.test_record` writes it again.
"""

import hashlib
import json
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from eomt import EoMTImageProcessor
from eomt.cli import main
from eomt.configuration import TASK_ROWS
from eomt.configuration.labels import LabelSpace
from eomt.image_processing.inference import predict_image
from eomt.results import Results
from eomt.training import EoMTTrainer
from eomt.training.data import EvaluationTransform, TrainTransform, load_data
from eomt.training.data.shapes import make_shapes
from tests.docs.workspace import cells, streets
from tests.training.tiny import tiny_arguments, tiny_model

FILE = Path(__file__).parent / "record.json"
TASKS = ("panoptic", "instance", "semantic")
TOLERANCE = 3e-4  # relative. The order of sums depends on processor and version, and differences grow over 20 steps:
# 1.1e-4 between torch 2.11 with the lowest versions in pyproject.toml and torch 2.14 with the newest


def write_data(task: str, folder: Path) -> Path:
    """Write eight training images and four others of shapes, in a format of the task."""
    shapes = make_shapes(folder / "shapes", train=8, val=4)
    if task == "panoptic":
        return shapes
    target = folder / "data"
    (cells if task == "instance" else streets)(shapes, target)
    return target


def train(task: str, folder: Path) -> list[dict]:
    """The log of twenty steps and an evaluation: losses, rates, mask probabilities, metric."""
    data = write_data(task, folder)
    rows, labels = load_data(data, task=task, split="train")
    held_out, _ = load_data(data, task=task, split="val")
    stuff = labels.stuff_label_ids if task == "panoptic" else []
    model = tiny_model(task=task, id2label=labels.id2label, stuff_label_ids=stuff)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        for parameter in model.embeddings.parameters():  # trunc_normal_ has other numbers from torch 2.14 on
            parameter.normal_(std=0.02)
    args = tiny_arguments(folder / "run", max_steps=20, logging_steps=4, seed=0, eval_strategy="steps", eval_steps=20)
    trainer = EoMTTrainer(
        model,
        args,
        train_dataset=rows.with_transform(TrainTransform(labels, task=task, size=32)),
        eval_dataset=held_out.with_transform(EvaluationTransform(labels, task=task)),
        processing_class=EoMTImageProcessor(task=task, size=32, stuff_label_ids=model.config.stuff_label_ids),
    )
    trainer.train()
    trainer.save_model()
    return [
        {key: value for key, value in entry.items() if isinstance(value, float | int) and not is_timing(key)}
        for entry in trainer.state.log_history
    ]


def evaluate(task: str, folder: Path) -> dict:
    """The report of `eomt evaluate` about the run of `train`."""
    argv = ["evaluate", str(folder / "run"), "--data", str(write_data(task, folder / "other"))]
    assert main([*argv, "--output", str(folder / "report"), "--device", "cpu"]) == 0
    return json.loads((folder / "report/metrics.json").read_text())


def is_timing(key: str) -> bool:
    return any(word in key for word in ("runtime", "per_second", "flos"))


def saved_keys(folder: Path) -> list[str]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return sorted(file.keys())


def write_files(task: str, folder: Path) -> dict:
    """Write the results for given logits of an image of 60 × 90. Returns JSON files, and digests of PNGs."""
    generator = torch.Generator().manual_seed(TASKS.index(task))
    coarse = torch.randn(2 if task == "semantic" else 1, 12, 4, 4, generator=generator) * 8
    logits = SimpleNamespace(
        masks_queries_logits=torch.nn.functional.interpolate(coarse, (16, 16), mode="bilinear"),
        class_queries_logits=torch.randn(len(coarse), 12, 4, generator=generator) * 6,
        patch_offsets=[(0, 0, 64), (0, 32, 96)] if task == "semantic" else None,
    )
    processor = EoMTImageProcessor(task=task, size=64, stuff_label_ids=[2] if task == "panoptic" else None)
    prediction = predict_image(processor, logits, (60, 90), task)
    results = Results(folder, task, LabelSpace("test", ("a", "b", "c")), {"model": "given"})
    results.write("12", "12.png", prediction)
    results.finish(["12"])
    found = {}
    for file in sorted(folder.rglob("*")):
        name = str(file.relative_to(folder))
        if file.suffix == ".json":
            found[name] = json.loads(file.read_text())
        elif file.suffix == ".png":
            found[name] = hashlib.sha256(np.asarray(Image.open(file)).tobytes()).hexdigest()[:16]
    return found


def close(found, expected, where: str = "") -> None:
    """Assert equal values, of floats within the tolerance."""
    if isinstance(expected, dict):
        assert set(found) == set(expected), where
        for key, value in expected.items():
            close(found[key], value, f"{where}/{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for i, value in enumerate(expected):
            close(found[i], value, f"{where}/{i}")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=TOLERANCE, abs=1e-6), where
    else:
        assert found == expected, where


@pytest.mark.parametrize("task", TASKS)
def test_runs_equal_the_record(task, tmp_path):
    expected = json.loads(FILE.read_text())["runs"][task]
    log = train(task, tmp_path)
    close(json.loads(json.dumps(log)), expected["log"])
    assert saved_keys(tmp_path / "run") == expected["keys"]
    found = evaluate(task, tmp_path)
    key = TASK_ROWS[task].metric_key
    assert found["metrics"][key] == pytest.approx(log[-2][f"eval_{key}"], abs=1e-6)
    assert sorted(found) == expected["report"]


@pytest.mark.parametrize("task", TASKS)
def test_files_equal_the_record(task, tmp_path):
    close(write_files(task, tmp_path), json.loads(FILE.read_text())["files"][task])


def write_record() -> None:
    runs, files = {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        for task in TASKS:
            folder = Path(temporary, task)
            log = train(task, folder)
            report = sorted(evaluate(task, folder))
            runs[task] = {"log": log, "keys": saved_keys(folder / "run"), "report": report}
            files[task] = write_files(task, folder / "files")
    FILE.write_text(json.dumps({"runs": runs, "files": files}, indent=1) + "\n")


if __name__ == "__main__":
    write_record()
