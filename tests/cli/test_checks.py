"""Bad arguments end in one line that names the value, before anything is written."""

import pytest
import torch
from PIL import Image

from eomt import EoMTImageProcessor
from eomt.cli import evaluate, main, one_line
from eomt.cli.checks import require_model, usable_device
from eomt.training.data import load_data
from tests.models import tiny_model


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


def test_device():
    assert usable_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="--device nonsense cannot be used here"):
        usable_device("nonsense")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"--device cuda cannot be used here .*cpu"):
            usable_device("cuda")


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
    with pytest.raises(ValueError, match="coco data has truth for panoptic and instance, not for 'semantic'"):
        load_data(tmp_path, task="semantic")


def test_evaluation_of_another_task_than_the_models(tmp_path):
    tiny_model(task="semantic").save_pretrained(tmp_path)
    EoMTImageProcessor(task="semantic", size=64).save_pretrained(tmp_path)
    for task, expected in (("panoptic", "panoptic"), (None, "semantic")):
        args = evaluate.parser().parse_args([str(tmp_path), "--data", "x", *(["--task", task] if task else [])])
        assert evaluate._load(args)[1].task == expected
