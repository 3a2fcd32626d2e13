"""The command line: help, wrong options, one line for every error, exit codes, impossible outputs."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader, Dataset

from eomt import EoMTImageProcessor
from eomt.cli import app, main, user_message
from eomt.loading import load_model, usable_device
from eomt.modeling_eomt import convert_to_authors
from eomt.training.data.shapes import make_shapes
from tests.models import tiny_model
from tests.pairs import ENVIRONMENT


class Failing(Dataset):
    """A data set that raises an error in its worker, or kills it, as the system does without memory."""

    def __init__(self, error: Exception | None):
        self.error = error

    def __len__(self):
        return 1

    def __getitem__(self, index):
        if self.error:
            raise self.error
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(("compute", "word"), [
    (lambda: next(iter(DataLoader(Failing(ValueError("a.png: 40×70,\nnot 50×70")), num_workers=1))), "a.png"),
    (lambda: next(iter(DataLoader(Failing(None), num_workers=1))), "workers"),
    (lambda: torch.empty(1 << 60, dtype=torch.uint8), "memory"),
    (lambda: np.empty(1 << 60, np.uint8), "memory"),
    (lambda: {}["query"], "EOMT_DEBUG=1"),
])  # fmt: skip
def test_any_error_is_one_line(compute, word):
    with pytest.raises(Exception) as caught:  # noqa: PT011 (any error)
        compute()
    line = user_message(caught.value)
    assert word in line
    assert "\n" not in line
    assert "Traceback" not in line


def test_every_command_has_help(capsys):
    for name in [name for name in app if not name.startswith("-")]:
        assert main([name, "--help"]) == 0
        assert f"Usage: eomt {name}" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert main([]) == 0


@pytest.mark.parametrize(("argv", "word"), [
    (["predikt"], '"predict"'),
    (["predict", "a.png", "--modle", "m", "--output", "o"], "--model?"),
    (["predict", "", "--model", "m", "--output", "o"], "IMAGES"),
    (["predict", "--model", "m", "--output", "o"], "images"),
    (["predict", "a.png", "--model", "m", "--output", "o", "--threshold", "3"], "--threshold"),
    (["predict", "a.png", "--model", "m", "--output", "o", "--token-merging", "7"], "--token-merging"),
    (["predict", "a.png", "--model", "m", "--output", "o", "--batch-size", "0"], "--batch-size"),
    (["predict", "a.png", "--model", "/none/such", "--output", "o"], "/none/such"),
    (["train", "--data", "x", "--task", "depth"], "depth"),
    (["evaluate", "m", "--data", ""], "--data"),
    (["evaluate", "--data", "x"], "--predictions"),
    (["evaluate", "--data", "x", "--predictions", "p"], "--task"),
    (["evaluate", "--data", "x", "--predictions", "p", "--task", "panoptic", "--masked"], "--masked"),
    (["evaluate", "m", "--predictions", "p", "--data", "x"], "--predictions"),
    (["evaluate", "m", "--data", "x", "--worst", "2"], "--output"),
    (["export", "m", "o", "--format", "onnx", "--precision", "bf16"], "bf16"),
    (["export", "m", "o", "--format", "onnx", "--precision", "int8"], "--calibrate"),
    (["export", "m", "o", "--format", "onnx", "--image-size", "0"], "--image-size"),
    (["export", "m", "o", "--format", "onnx", "--ignore-ids", "0"], "--data"),
    (["benchmark", "nothing"], "nothing"),
    (["benchmark", "vit_small_patch14_reg4_dinov2", "--autocast"], "--dtype"),
    (["benchmark", "vit_small_patch14_reg4_dinov2", "--token-merging", "0.9"], "--images"),
    (["benchmark", "vit_small_patch14_reg4_dinov2", "--image-size", "100"], "96"),
    (["serve"], "models"),
])  # fmt: skip
def test_wrong_options_are_one_line_of_error(argv, word, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert word in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_broken_pipe_prints_no_error(monkeypatch):
    """As in `eomt … | head`, for the help, which rich prints, and for a command."""

    def broken_pipe():
        read, write = os.pipe()
        os.close(read)
        return os.fdopen(write, "w")

    with broken_pipe() as pipe:
        command = [sys.executable, "-m", "eomt", "--help"]
        done = subprocess.run(command, env=os.environ | ENVIRONMENT, stdout=pipe, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (1, b"")
    with broken_pipe() as pipe, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", pipe)
        assert main(["train", "--list-recipes"]) == 141


def test_unusable_devices_are_refused():
    assert usable_device("cpu") == torch.device("cpu")
    for name in ("nonsense", *([] if torch.cuda.is_available() else ["cuda"])):
        with pytest.raises(ValueError, match=name):
            usable_device(name)


def test_help_and_wrong_options_import_no_torch():
    script = "import sys; from eomt.cli import main\n"
    for argv in (["--help"], ["predict", "--help"], ["export", "--mdoel=x"]):
        script += f"sys.argv[0] = '/bin/eomt'; main({argv!r})\n"
    script = "import sys; sys.argv[0] = '/bin/eomt'\n" + script
    script += "assert not {'torch', 'transformers'} & set(sys.modules), 'torch was imported'"
    done = subprocess.run([sys.executable, "-c", script], env=os.environ | ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- models ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    model = tiny_model(task="semantic")
    model.set_attn_mask_probs([0.0] * 2)
    model.save_pretrained(root / "model")
    EoMTImageProcessor(task="semantic", size=64).save_pretrained(root / "model")
    torch.save(convert_to_authors(model), root / "authors.bin")
    Image.new("RGB", (8, 8)).save(root / "a.png")
    make_shapes(root / "data", train=1, val=1)
    return root


def damage(model, tensor=None, **fields) -> None:
    """Change fields of a saved model's configuration, or one value of its weights; None removes that tensor."""
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | fields))
    state = load_file(model / "model.safetensors")
    if tensor is None:
        del state["query.weight"]
    else:
        state["query.weight"][0, 0] = tensor
    save_file(state, model / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(("changes", "word"), [
    ({}, "query.weight"), ({"tensor": float("nan")}, "query.weight"), ({"tensor": 0, "num_hidden_layers": 3}, "layers"),
    ({"tensor": 0, "model_type": "vit"}, "'vit'"), ({"tensor": 0, "hidden_size": 48_000}, "M parameters"),
], ids=["removed", "nan", "fewer layers", "another kind", "110 billion parameters"])  # fmt: skip
def test_weights_that_do_not_fit_are_refused(changes, word, folder, tmp_path):
    model = shutil.copytree(folder / "model", tmp_path / "model")
    damage(model, **changes)
    with pytest.raises(ValueError, match=word):
        load_model(str(model))


def test_every_command_checks_the_weights(folder, tmp_path, capsys):
    model = shutil.copytree(folder / "model", tmp_path / "model")
    damage(model)
    train = "--task semantic --class-head new --use-cpu --max-steps 1 --total-batch-size 1 --dataloader-num-workers 0"
    for command in (
        ["predict", folder / "a.png", "--model", model, "--output", tmp_path / "out"],
        ["evaluate", model, "--data", folder / "data"],
        ["export", model, tmp_path / "out", "--format", "onnx"],
        ["convert", model, tmp_path / "out.bin"],
        ["train", "--data", folder / "data", "--checkpoint", model, "--output", tmp_path / "out", *train.split()],
    ):
        assert main([str(part) for part in command]) == 2, command
        assert "query.weight" in capsys.readouterr().err.strip().splitlines()[-1], command
        assert [path.name for path in tmp_path.iterdir()] == ["model"], command


@pytest.fixture
def full_disk():
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limits[1]))  # bytes, less than the weights
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, before)


@pytest.mark.parametrize("command", [
    "convert {0}/authors.bin {1}/new --heads 4", "convert {0}/model {1}/new.bin",
    pytest.param("export {0}/model {1}/new --format onnx", marks=pytest.mark.slow),
])  # fmt: skip
def test_a_full_disk_is_one_line_and_leaves_nothing(folder, tmp_path, full_disk, capsys, command):
    assert main(command.format(folder, tmp_path).split()) == 2
    error = capsys.readouterr().err
    assert any(text in error for text in ("the disk may be full", "File too large"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["--output", "--save-predictions"])
def test_impossible_outputs_are_refused_before_the_evaluation(folder, tmp_path, capsys, option):
    (tmp_path / "file").write_text("")
    assert main(["evaluate", str(folder / "model"), "--data", "nowhere", option, str(tmp_path / "file/out")]) == 2
    assert "file" in capsys.readouterr().err


@pytest.mark.parametrize("target", ["run", "run/inner"])
def test_force_does_not_replace_the_model_that_is_read(folder, tmp_path, target):
    shutil.copytree(folder / "model", tmp_path / "run/inner")
    shutil.copytree(folder / "model", tmp_path / "run", dirs_exist_ok=True)
    command = ["export", str(tmp_path / "run/inner"), str(tmp_path / target), "--format", "onnx", "--force"]
    assert main(command) == 2
    assert (tmp_path / "run/inner/model.safetensors").is_file()


@pytest.mark.parametrize("work", ["trainer_state.json", "checkpoint-10/model.safetensors"])
def test_force_does_not_replace_a_training_run(folder, tmp_path, work):
    shutil.copytree(folder / "model", tmp_path / "run")
    (tmp_path / "run" / work).parent.mkdir(exist_ok=True)
    (tmp_path / "run" / work).write_text("hours of work")
    assert main(["convert", str(folder / "authors.bin"), str(tmp_path / "run"), "--heads", "4", "--force"]) == 2
    assert (tmp_path / "run" / work).read_text() == "hours of work"
