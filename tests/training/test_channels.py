"""`eomt train` on images of four channels from an RGB checkpoint, and the other commands with the result."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import eomt
from eomt.cli import main
from eomt.engines import ENGINES
from eomt.image_processing import EoMTImageProcessor
from eomt.training import EoMTDataCollator
from eomt.training.data import TrainTransform, load_data
from tests.models import tiny_model


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Images of two classes, which differ in the fourth band only."""
    folder = tmp_path_factory.mktemp("bands")
    random = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for number in range(count):
            labels = np.zeros((64, 64), np.uint8)
            labels[:, 32:] = 1
            image = random.integers(0, 4000, (64, 64, 4), dtype=np.uint16)
            image[..., 3] += labels * np.uint16(20000)
            np.save(folder / "images" / split / f"{number}.npy", image)
            Image.fromarray(labels).save(folder / "labels" / split / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    tiny_model(num_labels=2, num_hidden_layers=2, num_blocks=1, task="semantic").save_pretrained(folder / "rgb")
    options = "--class-head new --image-size 64 --max-steps 2 --batch-size 2 --use-cpu --dataloader-num-workers 0"
    command = f"train --data {data} --task semantic --checkpoint {folder / 'rgb'} --output-dir {folder / 'run'}"
    assert main([*command.split(), *options.split(), "--num-channels", "4", "--color-jitter"]) == 0
    return folder / "run"


def test_the_result_has_four_channels(trained):
    config = json.loads((trained / "config.json").read_text())
    processor = json.loads((trained / "preprocessor_config.json").read_text())
    assert config["num_channels"] == processor["num_channels"] == 4
    assert processor["image_mean"][:3] == pytest.approx([2000 / 65535] * 3, rel=0.1)
    assert processor["image_mean"][3] == pytest.approx(12000 / 65535, rel=0.1)
    assert processor["image_std"][3] > 5 * processor["image_std"][0]


def test_training_sees_the_pixels_of_inference(data, trained):
    """Of 16 bits, normalized in the same way."""
    processor = EoMTImageProcessor.from_pretrained(trained)
    table, labels = load_data(data, task="semantic", split="val")
    transform = TrainTransform(labels, task="semantic", size=64, augment=False, num_channels=4)
    batch = EoMTDataCollator.from_processor(processor)([table.with_transform(transform)[0]])
    expected = processor(np.load(table[0]["image"]), return_tensors="pt")["pixel_values"]
    assert expected.abs().max() < 10
    torch.testing.assert_close(batch["pixel_values"], expected, rtol=0, atol=1e-4)


def test_the_commands_run_on_four_channels(data, trained, tmp_path, capsys):
    images, output = data / "images/val", tmp_path / "out"
    assert main(f"predict {images} --model {trained} --output {output} --workers 0".split()) == 0
    assert Image.open(next(output.rglob("*.jpg"))).mode == "RGB"
    for scored in (trained, f"--task semantic --predictions {output}"):
        assert main(f"evaluate {scored} --data {data} --output {tmp_path / 'score'} --worst 1".split()) == 0
    assert main(f"predict {images} --model {trained} --output {tmp_path / 'tiled'} --tile 48".split()) == 0
    assert len([*(tmp_path / "tiled").rglob("*.jpg")]) == 2
    assert main(f"benchmark {trained} --images {images} --repeats 1 --warm-up 0".split()) == 0
    np.save(tmp_path / "five.npy", np.zeros((64, 64, 5), np.uint8))
    capsys.readouterr()
    assert main(f"predict {tmp_path / 'five.npy'} --model {trained} --output {tmp_path / 'five'}".split()) == 1
    line = next(line for line in "".join(capsys.readouterr()).splitlines() if "5 channels" in line)
    assert "five.npy" in line
    assert "4" in line


def test_segment_accepts_four_channels(data, trained):
    """From a file, an array and a tensor. The picture shows the first three bands."""
    file = data / "images/val/0.npy"
    image = np.load(file)
    found = [eomt.segment(source, str(trained)) for source in (file, image, torch.from_numpy(image).permute(2, 0, 1))]
    assert found[0].image.mode == "RGB"
    assert found[0].picture().width >= 64
    for other in found[1:]:
        assert (other.masks == found[0].masks).all()
        assert other.scores == found[0].scores


@pytest.mark.slow
def test_export(data, trained, tmp_path):
    exported = tmp_path / "exported"
    assert main(["export", str(trained), str(exported), "--format", *ENGINES]) == 0
    assert main(f"predict {data / 'images/val'} --model {exported} --output {tmp_path / 'out'}".split()) == 0


def test_an_image_of_other_channels_is_named(data, tmp_path, capsys):
    command = f"train --data {data} --task semantic --output-dir {tmp_path} --backbone-weights scratch --check"
    assert main(f"{command} --dataloader-num-workers 0".split()) == 1
    line = next(line for line in "".join(capsys.readouterr()).splitlines() if "4 channels" in line)
    assert ".npy" in line
    assert "3" in line
