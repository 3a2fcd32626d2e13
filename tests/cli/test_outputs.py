"""Outputs that cannot be written: known before the work where possible; a full disk is one line and leaves nothing."""

import os
import resource
import shutil
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from eomt import EoMTImageProcessor
from eomt.cli import main
from eomt.modeling_eomt import convert_to_authors
from eomt.training.initial_model import crop_size
from eomt.training.options import DataOptions
from eomt.training.run_setup import _scale_range
from tests.models import tiny_model


class Killed(Dataset):
    """A dataset whose worker is killed, as by the out-of-memory killer."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    model = tiny_model(task="semantic")
    model.set_attn_mask_probs([0.0] * 2)
    model.save_pretrained(root / "model")
    EoMTImageProcessor(task="semantic", size=64).save_pretrained(root / "model")
    torch.save(convert_to_authors(model), root / "authors.bin")
    return root


@pytest.fixture
def full_disk():
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limits[1]))  # bytes of a file: the weights do not fit
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, before)


@pytest.mark.parametrize(
    "command",
    [
        "convert {0}/authors.bin {1}/new --heads 4",
        "convert {0}/model {1}/new.bin",
        "export {0}/model {1}/new --format onnx",
    ],
)
def test_a_full_disk_is_one_line_and_leaves_nothing(folder, tmp_path, full_disk, capsys, command):
    assert main(command.format(folder, tmp_path).split()) == 2
    error = capsys.readouterr().err
    assert any(text in error for text in ("the disk may be full", "File too large"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("fails", "message"),
    [
        (lambda: torch.empty(1 << 60, dtype=torch.uint8), "out of memory; use a smaller batch"),
        (lambda: np.empty(1 << 60, np.uint8), "out of memory; use a smaller batch"),
        (lambda: next(iter(DataLoader(Killed(), num_workers=1))), "a data-loading worker was killed"),
    ],
)
def test_out_of_memory_is_one_line(monkeypatch, capsys, fails, message):
    monkeypatch.setattr("eomt.cli.export.read", lambda argv: None)
    monkeypatch.setattr("eomt.cli.export.run", lambda options: fails())
    assert main(["export"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("option", ["--output", "--save-predictions"])
def test_an_output_that_cannot_be_is_found_before_the_scoring(folder, tmp_path, capsys, option):
    (tmp_path / "file").write_text("")
    target = tmp_path / "file/out"
    assert main(["evaluate", str(folder / "model"), "--data", "nowhere", option, str(target)]) == 2
    assert "Not a directory" in capsys.readouterr().err


def test_image_sizes_that_cannot_be(folder, tmp_path, capsys):
    for command in (f"export {folder}/model {tmp_path}/new", f"convert {folder}/authors.bin {tmp_path}/new --heads 4"):
        assert main([*command.split(), "--image-size", "0"]) == 2
        assert "--image-size 0: give a side in pixels, or HEIGHTxWIDTH" in capsys.readouterr().err
    with pytest.raises(ValueError, match="--image-size 0: give a side in pixels"):
        crop_size(DataOptions(data="data", image_size="0"), None)
    for text in ("2,1", "0,1", "1", "a,b"):
        with pytest.raises(ValueError, match=f"{text}.*"):
            _scale_range(text)


def test_predict_says_that_only_the_first_frame_is_used(folder, tmp_path, capsys):
    frames = [Image.new("RGB", (40, 40), color) for color in ("red", "blue", "green")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    (tmp_path / "linked").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data/more").symlink_to(tmp_path / "linked")
    frames[0].save(tmp_path / "linked/photo.jfif", "JPEG")
    command = (
        f"predict {tmp_path}/moving.gif {tmp_path}/data --model {folder}/model --output {tmp_path}/out --workers 0"
    )
    assert main(command.split()) == 0
    assert "moving.gif: the first of 3 frames" in capsys.readouterr().err
    assert (tmp_path / "out/labels/more/photo.png").is_file()


@pytest.mark.parametrize("target", ["run", "run/best"])
def test_force_replaces_no_trained_model_by_what_is_made_from_it(folder, tmp_path, capsys, target):
    shutil.copytree(folder / "model", tmp_path / "run/best")
    shutil.copytree(folder / "model", tmp_path / "run", dirs_exist_ok=True)
    command = ["export", str(tmp_path / "run/best"), str(tmp_path / target), "--format", "onnx", "--force"]
    assert main(command) == 2
    assert "would be lost" in capsys.readouterr().err
    assert (tmp_path / "run/best/model.safetensors").is_file()


@pytest.mark.parametrize("work", ["trainer_state.json", "checkpoint-10/model.safetensors"])
def test_force_replaces_no_training_run(folder, tmp_path, capsys, work):
    shutil.copytree(folder / "model", tmp_path / "run")
    (tmp_path / "run" / work).parent.mkdir(exist_ok=True)
    (tmp_path / "run" / work).write_text("hours of work")
    assert main(["convert", str(folder / "authors.bin"), str(tmp_path / "run"), "--heads", "4", "--force"]) == 2
    assert "a training run or other folders" in capsys.readouterr().err
    assert (tmp_path / "run" / work).read_text() == "hours of work"
