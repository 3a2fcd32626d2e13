"""Bad arguments end in one line that names the value, before anything is written."""

import json
import os
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from eomt import EoMTImageProcessor, evaluate
from eomt.cli import evaluate as evaluate_command
from eomt.cli import main, one_line
from eomt.inference.loading import require_model, usable_device
from eomt.training.data import load_data
from eomt.training.data.shapes import make_shapes
from tests.models import tiny_model
from tests.pairs import ENVIRONMENT


class _Broken(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise ValueError("a.png: its mask is 40×70,\nthe image 50×70")


def test_error_of_a_loading_process_is_one_line():
    with pytest.raises(ValueError, match="Traceback") as caught:
        next(iter(torch.utils.data.DataLoader(_Broken(), num_workers=1)))
    assert one_line(caught.value) == "a.png: its mask is 40×70, the image 50×70"
    assert one_line(OSError("first\n  second")) == "first second"


@pytest.mark.parametrize("options", [["--help"], ["train", "--list-recipes"]])
def test_a_broken_pipe_is_no_error(options):
    read, write = os.pipe()
    os.close(read)  # as head does when it has enough
    command = [sys.executable, "-m", "eomt", *options]
    done = subprocess.run(command, env=os.environ | ENVIRONMENT, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.returncode == 141
    assert "Broken" not in done.stderr


def test_device():
    assert usable_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="--device nonsense cannot be used here"):
        usable_device("nonsense")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"--device cuda cannot be used here .*cpu"):
            usable_device("cuda")


@pytest.mark.parametrize(
    "command",
    [
        "predict {photos} --model {model} --output {out}",
        "evaluate {model} --data {photos}",
        "export {model} {out} --format onnx",
        "train --data {photos} --checkpoint {model} --output-dir {out}",
    ],
)
@pytest.mark.parametrize("kind", ["vit", "mask2former"])
def test_a_model_of_another_kind(command, kind, tmp_path, capsys):
    """Said before its weights or any data are read."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text(json.dumps({"model_type": kind}))
    (tmp_path / "model/preprocessor_config.json").write_text(json.dumps({"image_processor_type": "ViTImageProcessor"}))
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "photos/a.png")
    names = {name: str(tmp_path / name) for name in ("photos", "model", "out")}
    assert main([part.format(**names) for part in command.split()]) == 2
    assert f"{names['model']} holds a '{kind}' model, not an EoMT" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["/none/such", "a/b/c", "./runs"])
def test_no_such_model(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the working folder may well have a ./runs
    with pytest.raises(ValueError, match=f"there is no model in '{name}'"):
        require_model(name)


def test_directory_without_a_model(tmp_path):
    with pytest.raises(ValueError, match=r"no config\.json"):
        require_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read, it may be truncated"):
        require_model(str(tmp_path))
    require_model("tue-mps/coco_panoptic_eomt_large_640")  # whether the hub has it is for the hub to say


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--threshold", "3"], "--threshold 3.0: give a probability from 0 to 1"),
        (["--threshold", "0.3", "--task", "semantic"], "--threshold 0.3 is for panoptic and instance segmentation"),
        (["--least-score", "0.3"], "--least-score 0.3 needs --as-dataset"),
        (["--merging-layers", "1", "2"], "--merging-layers needs --token-merging"),
        (["--model", "/none/such"], "there is no model in '/none/such'"),
    ],
)
def test_predict_refuses(options, message, tmp_path, capsys):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    arguments = ["predict", str(tmp_path / "a.png"), "--model", str(tmp_path), "--output", str(tmp_path / "out")]
    assert main([*arguments, *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_predict_into_a_file(tmp_path, capsys):
    file = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(file)
    assert main(["predict", str(file), "--model", str(tmp_path), "--output", str(file)]) == 2
    assert f"--output {file} is a file" in capsys.readouterr().err


def test_panoptic_data_has_no_semantic_truth(tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/panoptic_train.json").write_text("{}")
    with pytest.raises(ValueError, match="coco data has ground truth for panoptic and instance, not for 'semantic'"):
        load_data(tmp_path, task="semantic")


def test_evaluation_of_another_task_than_the_models(tmp_path):
    tiny_model(task="semantic").save_pretrained(tmp_path)
    EoMTImageProcessor(task="semantic", size=64).save_pretrained(tmp_path)
    for task, expected in (("panoptic", "panoptic"), (None, "semantic")):
        args = evaluate_command.parser().parse_args([str(tmp_path), "--data", "x", *(["--task", task] if task else [])])
        assert evaluate.load(args)[1].task == expected


def _remove(folder):
    state = load_file(folder / "model.safetensors")
    save_file({k: t for k, t in state.items() if k != "query.weight"}, folder / "model.safetensors", {"format": "pt"})


def _add_nan(folder):
    state = load_file(folder / "model.safetensors")
    state["mask_head.fc1.weight"][0, 0] = float("nan")
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def _change(**fields):
    def change(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | fields))

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_remove, "missing (1): query.weight"),
        (_add_nan, "holds NaN or infinite weights (1): mask_head.fc1.weight"),
        (_change(use_swiglu_ffn=True), "do not fit config.json; missing (24)"),
        (_change(num_hidden_layers=3), "unexpected ("),
        (_change(num_queries=9), "mis-shaped (1): query.weight"),
    ],
    ids=["removed", "nan", "other mlp", "fewer layers", "more queries"],
)
def test_every_command_refuses_weights_that_are_not_the_models(damage, message, tmp_path, capsys):
    folder = tmp_path / "model"
    tiny_model().save_pretrained(folder)
    EoMTImageProcessor(task="panoptic", size=64).save_pretrained(folder)
    damage(folder)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    data = make_shapes(tmp_path / "data", train=1, val=1)
    train = "--task panoptic --class-head new --use-cpu --max-steps 1 --total-batch-size 1 --dataloader-num-workers 0"
    for command in (
        ["predict", tmp_path / "a.png", "--model", folder, "--output", tmp_path / "out"],
        ["evaluate", folder, "--data", data],
        ["export", folder, tmp_path / "out", "--format", "onnx"],
        ["convert", folder, tmp_path / "out.bin"],
        ["train", "--data", data, "--checkpoint", folder, "--output-dir", tmp_path / "out", *train.split()],
    ):
        if command[0] == "train" and "query.weight" in message and "mis-shaped" in message:
            continue  # a new number of queries is one of its options
        assert main([str(part) for part in command]) == 2, command
        assert message in capsys.readouterr().err.strip().splitlines()[-1], command
        assert not (tmp_path / "out").exists(), command
