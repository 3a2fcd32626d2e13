"""Two gloo processes have the results of one: training, sharded steps, metrics, evaluation and predictions."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eomt.cli import main
from eomt.training import EoMTTrainingArguments, layerwise_lr_groups
from eomt.training.data import make_shapes
from tests.models import save_confident
from tests.pairs import ENVIRONMENT, ROOT, run_pairs
from tests.predicting import SIZES, predict, write_photos
from tests.training.metrics.streams import results
from tests.training.runs import fixed_points, one_step, train_on_full_batches
from tests.training.test_evaluation import KEY, evaluated
from tests.training.tiny import tiny_arguments, tiny_model, tiny_pmt


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Seven images for two processes: the last batch has an additional image, which must not count."""
    return make_shapes(tmp_path_factory.mktemp("shapes"), train=1, val=7, size=(40, 90))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three images, and a text file with the name of an image."""
    folder = write_photos(tmp_path_factory.mktemp("photos") / "photos")
    (folder / "text.jpg").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def confident(tmp_path_factory):
    """A model that finds segments of the synthetic shapes' eight classes."""
    return save_confident(tmp_path_factory.mktemp("confident"), num_labels=8)


def evaluate(model, shapes, out) -> list[str]:
    options = ["--output", out, "--worst", "2", "--save-predictions", out / "files", "--workers", "0"]
    return [str(part) for part in ["evaluate", model, "--data", shapes, "--device", "cpu", *options]]


@pytest.fixture(scope="module")
def pairs(shapes, photos, confident, models, tmp_path_factory):
    """The folder with the files of all pairs, and what they printed. One process starts all: imports take longest."""
    root = tmp_path_factory.mktemp("pairs")
    runs = ("ddp", "nan", "cli", "fsdp", "pmt", "stream")
    for name in (*runs, "metrics", "evaluation"):
        (root / name).mkdir()
    command = ["eomt", "predict", photos, "--model", models["semantic"], "--output", root / "predict"]
    codes, done = run_pairs(
        *(["tests.training.runs", name, root / name] for name in runs),
        ["tests.training.metrics.streams", root / "metrics"],
        ["tests.training.test_evaluation", shapes, root / "evaluation"],
        ["eomt", *evaluate(confident, shapes, root / "evaluate")],
        [*command, "--device", "cpu", "--workers", "0"],
    )
    assert codes == [0] * 9 + [1], done.stderr  # one of the photos is a text file
    return root, done


def test_two_processes_equal_one(pairs, tmp_path, monkeypatch):
    both = pairs[0] / "ddp"
    monkeypatch.setattr(torch, "rand", torch.rand)  # restored after train_on_full_batches replaces it
    alone = train_on_full_batches(tmp_path / "alone", 4)

    gradients = torch.load(both / "gradients.pt")
    assert gradients.keys() == alone.gradients.keys()
    for name, gradient in alone.gradients.items():
        assert torch.allclose(gradients[name], gradient, atol=1e-7, rtol=1e-4), name
    logs = [row for row in json.loads((both / "logs.json").read_text()) if "loss" in row]
    expected = [row for row in alone.state.log_history if "loss" in row]
    assert len(logs) == len(expected) == 2
    for found, row in zip(logs, expected):
        for key in row:
            assert found[key] == pytest.approx(row[key], rel=1e-5), key
    files = {path.name for path in (both / "checkpoint-2").iterdir()}
    assert {"rng_state_0.pth", "rng_state_1.pth", "model.safetensors", "optimizer.pt"} <= files
    assert not (both / ".saving").exists()


def test_a_nan_loss_ends_both_processes(pairs):
    messages = [(pairs[0] / "nan" / f"{rank}.txt").read_text() for rank in (0, 1)]
    assert messages[0] == messages[1]
    assert "nan at step 0" in messages[0]
    assert "image1.png" in messages[0] or "image0.png" in messages[0]


@pytest.mark.parametrize("launcher", ["forked", pytest.param("torchrun", marks=pytest.mark.slow)])
def test_the_command_on_two_processes_is_one_run(pairs, launcher, tmp_path):
    """`torchrun … eomt train --bf16` without a GPU."""
    folder, printed = pairs[0] / "cli", pairs[1].stdout
    if launcher == "torchrun":
        folder = tmp_path
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        command = [*launch, "-m", "tests.training.runs", "cli", str(folder)]
        environment = os.environ | ENVIRONMENT
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        printed = done.stdout
    assert printed.count("× 2 processes") == 2  # EoMT and PMT
    assert (folder / "run" / "model.safetensors").is_file()
    assert (folder / "pmt" / "model.safetensors").is_file()
    assert (folder / "cache" / "encoder.json").is_file()


def test_a_sharded_step_equals_the_plain_one(pairs, monkeypatch):
    """With FSDP2, after an inference."""
    sharded = torch.load(pairs[0] / "fsdp" / "step.pt")
    monkeypatch.setattr(torch, "rand", fixed_points)
    model = tiny_model().train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    model.set_attn_mask_probs([1.0, 1.0])
    optimizer = torch.optim.AdamW(layerwise_lr_groups(model, 1e-3), weight_decay=0.05)
    loss = one_step(model, optimizer, range(4))
    assert sharded["loss"].item() == pytest.approx(loss.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        clear = parameter.grad.abs() > 1e-5  # Adam's first step is ± the learning rate, and noise for tiny gradients
        assert torch.allclose(sharded["weights"][name][clear], parameter[clear], atol=1e-6), name
        assert not torch.equal(parameter, before[name])


def test_a_step_of_pmt_has_the_statistics_of_both_processes(pairs, monkeypatch):
    monkeypatch.setattr(torch, "rand", fixed_points)
    model = tiny_pmt().train()
    model.set_attn_mask_probs([1.0, 1.0])
    loss = one_step(model, torch.optim.AdamW(layerwise_lr_groups(model, 1e-3)), range(4))
    for rank in range(2):
        step = torch.load(pairs[0] / "pmt" / f"step{rank}.pt")
        assert step["loss"].item() == pytest.approx(loss.item(), rel=1e-5)
        for name, gradient in step["gradients"].items():
            assert torch.allclose(gradient, model.get_parameter(name).grad, atol=1e-6, rtol=1e-4), name
        for name, tensor in model.state_dict().items():
            if ".norm.running" in name or name.startswith("encoder."):
                assert torch.allclose(step["state"][name], tensor, atol=1e-6), name


def test_a_stream_is_split_over_processes_and_workers(pairs):
    """Also after a resume."""
    recorded = [json.loads((pairs[0] / "stream" / f"{rank}.json").read_text()) for rank in range(2)]
    seen = [steps for steps, _ in recorded]
    assert [len(steps) for steps in seen] == [4, 4]
    assert [resumed for _, resumed in recorded] == [steps[2:] for steps in seen]
    names = [name for steps in seen for step in steps for name in step]
    assert sorted(names) == sorted(f"image{index}.png" for index in range(16))


def test_metrics_equal_those_of_one_process(pairs):
    expected = json.dumps(results())
    for rank in range(2):
        assert (pairs[0] / "metrics" / f"{rank}.json").read_text() == expected


def test_evaluation_equals_that_of_one_process(pairs, shapes):
    expected = json.dumps({task: evaluated(shapes, task, batch_size=2) for task in KEY})
    for rank in range(2):
        assert (pairs[0] / "evaluation" / f"{rank}.json").read_text() == expected


def test_eomt_evaluate_writes_the_files_of_one_process(pairs, shapes, confident, tmp_path):
    assert main(evaluate(confident, shapes, tmp_path / "alone")) == 0
    results = []
    for out in (pairs[0] / "evaluate", tmp_path / "alone"):
        metrics = json.loads((out / "metrics.json").read_text())
        worst = [(Path(entry["picture"]).name, entry["pq"]) for entry in metrics["worst"]]
        results.append((metrics["metrics"], worst, (out / "files/panoptic.json").read_text()))
    assert results[0] == results[1]


def test_eomt_predict_divides_the_images(pairs, photos, models, tmp_path):
    """With windows."""
    assert "3 images" in pairs[1].stdout
    assert "text.jpg" in pairs[1].stderr
    assert predict(photos, models["semantic"], tmp_path) == 1
    assert (pairs[0] / "predict/images.json").read_text() == (tmp_path / "images.json").read_text()
    for name in SIZES:
        one = np.asarray(Image.open(tmp_path / "labels" / f"{name}.png"))
        two = np.asarray(Image.open(pairs[0] / "predict/labels" / f"{name}.png"))
        assert (one != two).mean() < 2e-3


def test_processes_in_separate_groups_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(EoMTTrainingArguments, "world_size", 2)
    with pytest.raises(ValueError, match=r"WORLD_SIZE .* 1, .* 2 "):
        tiny_arguments(tmp_path)
