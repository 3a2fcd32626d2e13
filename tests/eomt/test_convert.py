"""`eomt convert`: both directions bitwise, inferred configurations, errors."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation

from eomt import EoMTImageProcessor, PMTConfig
from eomt.cli import main
from eomt.configuration import families
from eomt.configuration.families import find_backbone, nearest_backbone
from eomt.convert import image_processor
from eomt.modeling_eomt import convert_to_authors
from eomt.modeling_eomt.weights.inferred_config import config_from_checkpoint
from tests.modeling_eomt.test_checkpoints import reference_of
from tests.modeling_eomt.test_pmt import tiny_pmt
from tests.models import BACKBONE_OF_KIND, GOLDEN, golden_config, tiny_model
from tests.parity.test_pmt import assert_near, golden_pmt

KINDS = list(BACKBONE_OF_KIND)
SHAPE = ("--heads", "2", "--image-size", "64", "96")  # not visible in the shapes of the golden checkpoints


def golden_file(kind: str) -> Path:
    return GOLDEN / f"{kind}.checkpoint.safetensors"


def convert(*arguments) -> int:
    return main(["convert", *map(str, arguments)])


@pytest.mark.parametrize(
    ("kind", "suffix"), [*((kind, ".safetensors") for kind in KINDS), ("dinov2", ".bin"), ("dinov2", ".ckpt")]
)
@torch.no_grad()
def test_authors_files_convert_to_the_same_logits_and_back_bitwise(kind, suffix, tmp_path, capsys):
    assert convert(golden_file(kind), tmp_path / "hub", *SHAPE, "--task", "instance") == 0
    printed = capsys.readouterr().out
    for part in (BACKBONE_OF_KIND[kind].split("_")[0], "queries   7", "blocks    3 of 5", "64 × 96"):
        assert part in printed
    model = AutoModelForUniversalSegmentation.from_pretrained(tmp_path / "hub").eval()
    processor = AutoImageProcessor.from_pretrained(tmp_path / "hub")
    assert model.config.task == processor.task == "instance"
    io = load_file(GOLDEN / f"{kind}.io.safetensors")
    pixels = processor(list(io["images"]), return_tensors="pt")["pixel_values"]
    assert pixels.shape[-2:] == (64, 96)
    model.set_attn_mask_probs([0] * 3)
    torch.testing.assert_close(model(pixels).masks_queries_logits, io["plain.mask_logits"], rtol=0, atol=1e-5)

    file = tmp_path / f"back{suffix}"
    assert convert(tmp_path / "hub", file) == 0
    back = load_file(file) if suffix == ".safetensors" else torch.load(file, weights_only=True)
    back = back["state_dict"] if suffix == ".ckpt" else back
    theirs = load_file(golden_file(kind))
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[key], theirs[key]) for key in theirs)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["hub", file.name])


@pytest.mark.parametrize("kind", ["dinov2", "dinov3"])
@pytest.mark.parametrize("holds", ["all", "the decoder"])
@torch.no_grad()
def test_files_of_pmt_convert_to_the_same_logits_and_back_bitwise(kind, holds, tmp_path, capsys, monkeypatch):
    """The decoder alone needs the name of its encoder, here a backbone of the golden model's size, and its weights."""
    expected, io, pixels = golden_pmt(kind)
    theirs = load_file(GOLDEN / f"pmt_{kind}.checkpoint.safetensors")
    shape = ["--heads", "2", "--image-size", "96", "--task", "instance"]
    file = tmp_path / "authors.safetensors"
    save_file({key: t for key, t in theirs.items() if holds == "all" or "encoder" not in key}, file)
    if holds == "the decoder":
        row = replace(find_backbone(BACKBONE_OF_KIND[kind]), width=64, depth=4, heads=2)
        expected.save_pretrained(tmp_path / "encoder")
        assert convert(file, tmp_path / "hub", *shape) == 2
        assert convert(file, tmp_path / "hub", *shape, "--backbone", row.name) == 2  # of another width
        monkeypatch.setattr(families, "BACKBONES", (row,))
        monkeypatch.setattr(families.Backbone, "num_blocks", 3)  # the real one has no value for this depth
        if kind == "dinov2":
            assert convert(file, tmp_path / "hub", "--backbone", row.name) == 2
        errors = capsys.readouterr().err.splitlines()
        for line, word in zip(errors, ["backbone", "64", "image_size"]):
            assert word in line
        shape = [*shape[2:], "--backbone", row.name, "--reference-backbone", tmp_path / "encoder"]
    assert convert(file, tmp_path / "hub", *shape) == 0
    printed = capsys.readouterr().out
    for part in (f"{BACKBONE_OF_KIND[kind]}", "width 64, depth 4, 2 heads", "queries   9", "96 × 96"):
        assert part in printed
    model = AutoModelForUniversalSegmentation.from_pretrained(tmp_path / "hub").eval()
    assert model.config.interaction_indices == expected.config.interaction_indices
    assert model.config.encoder_config.grid_size == (6, 6)
    model.set_attn_mask_probs([0] * 3)
    assert_near(model(pixels).masks_queries_logits, io["plain.mask"])
    assert convert(tmp_path / "hub", tmp_path / "back.bin") == 0
    back = torch.load(tmp_path / "back.bin", weights_only=True)
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[key], theirs[key]) for key in theirs)


def test_a_decoder_alone_has_the_normalization_of_its_encoder():
    config = PMTConfig.for_backbone("vit_large_patch16_dinov3.sat493m", image_size=64)
    assert tuple(image_processor(config, {}).image_mean) == (0.430, 0.411, 0.296)


@pytest.mark.parametrize(("projection", "batch_norm"), [("mlp", False), ("linear", True), ("identity", False)])
def test_lateral_modules_are_inferred_from_the_file(projection, batch_norm):
    points = PMTConfig.train_num_points
    model = tiny_pmt(lateral_projection=projection, lateral_batch_norm=batch_norm, train_num_points=points)
    config = config_from_checkpoint(convert_to_authors(model), heads=4)
    assert config.to_dict() == model.config.to_dict()


@pytest.mark.parametrize("kind", KINDS)
def test_the_configuration_is_inferred_from_the_shapes(kind):
    found = config_from_checkpoint(load_file(golden_file(kind)), heads=2, image_size=(64, 96))
    assert found.to_dict() == golden_config(kind).to_dict()


@pytest.mark.parametrize(("labels", "queries", "task", "expected"), [
    (133, 7, None, ("panoptic", "person", 53)),
    (80, 7, None, ("instance", "person", 0)),
    (150, 100, None, ("semantic", "wall", 0)),
    (150, 200, None, ("panoptic", "wall", 50)),
    (150, 200, "semantic", ("semantic", "wall", 0)),
    (19, 100, None, ("semantic", "road", 0)),
    (5, 100, None, ("semantic", "LABEL_0", 0)),
    (5, 7, None, ("panoptic", "LABEL_0", 0)),
    (5, 7, "instance", ("instance", "LABEL_0", 0)),
])  # fmt: skip
def test_labels_and_task_are_inferred_from_the_numbers(labels, queries, task, expected):
    state = convert_to_authors(tiny_model(num_labels=labels, num_queries=queries))
    config = config_from_checkpoint(state, heads=4, task=task)
    assert (config.task, config.id2label[0], len(config.stuff_label_ids)) == expected
    assert config.image_size == 64


@pytest.mark.parametrize("kind", ["dinov2", "dinov3"])
def test_full_size_backbones_are_recognized(kind):
    model = tiny_model(kind, hidden_size=384, num_hidden_layers=12, num_attention_heads=6)
    config = config_from_checkpoint(convert_to_authors(model))
    row, exact = nearest_backbone(config)
    assert (row.name, exact, config.num_attention_heads) == (BACKBONE_OF_KIND[kind], True, 6)
    assert config.image_size == (640 if kind == "dinov3" else 64)


@pytest.mark.parametrize("form", ["list", "map", "text"])
def test_labels_may_come_from_a_file(form, tmp_path):
    names = [f"class {i}" for i in range(11)]
    file = tmp_path / ("names.txt" if form == "text" else "names.json")
    forms = {"list": json.dumps(names), "map": json.dumps(dict(enumerate(names))), "text": "\n".join(names)}
    file.write_text(forms[form])
    assert convert(golden_file("dinov2"), tmp_path / "hub", *SHAPE, "--labels", file, "--stuff", "9", "10") == 0
    config = json.loads((tmp_path / "hub/config.json").read_text())
    assert [config["id2label"][str(i)] for i in range(11)] == names
    assert config["stuff_label_ids"] == [9, 10]
    assert json.loads((tmp_path / "hub/preprocessor_config.json").read_text())["stuff_label_ids"] == [9, 10]


def test_other_channels_than_rgb_are_refused():
    with pytest.raises(ValueError, match="4"):
        convert_to_authors(tiny_model(num_channels=4))


def test_differences_convert_in_both_directions(tmp_path, capsys, monkeypatch):
    """The file is refused without the reference, and exact except for rounding with it."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    model, reference = tiny_model("dinov3"), tiny_model("dinov3", seed=5)
    model.set_attn_mask_probs([0.25, 0])
    model.save_pretrained(tmp_path / "hub")
    save_file(reference_of(reference), tmp_path / "reference.safetensors")
    assert convert(tmp_path / "hub", tmp_path / "delta.bin", "--delta-from", tmp_path / "reference.safetensors") == 0
    assert convert(tmp_path / "delta.bin", tmp_path / "back", "--heads", 4, "--image-size", 64) == 2
    assert "facebook/dinov3-vits16-pretrain-lvd1689m" in capsys.readouterr().err
    assert not (tmp_path / "back").exists()
    options = ("--heads", 4, "--image-size", 64, "--reference-backbone", tmp_path / "reference.safetensors")
    assert convert(tmp_path / "delta.bin", tmp_path / "back", *options) == 0
    back = AutoModelForUniversalSegmentation.from_pretrained(tmp_path / "back").state_dict()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(back[name], tensor, rtol=0, atol=1e-6)


def test_existing_files_are_not_overwritten(tmp_path, capsys):
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub/thesis.tex").write_text("years of work")
    assert convert(golden_file("dinov2"), tmp_path / "hub", *SHAPE) == 2
    assert "hub" in capsys.readouterr().err
    assert convert(golden_file("dinov2"), tmp_path / "hub", *SHAPE, "--force") == 2  # not a model's folder
    assert "hub" in capsys.readouterr().err
    assert (tmp_path / "hub/thesis.tex").read_text() == "years of work"
    assert convert(golden_file("dinov2"), tmp_path / "model", *SHAPE) == 0
    assert convert(golden_file("eva02"), tmp_path / "model", *SHAPE, "--force") == 0
    (tmp_path / "model/encoder").mkdir()  # as in an export of PMT in two files
    (tmp_path / "model/encoder/model.onnx").touch()
    assert convert(golden_file("eva02"), tmp_path / "model", *SHAPE, "--force") == 0
    assert not (tmp_path / "model/encoder").exists()
    assert json.loads((tmp_path / "model/config.json").read_text())["model_type"] == "eomt_eva02"
    assert convert(tmp_path / "model", tmp_path / "file.bin") == 0
    before = (tmp_path / "file.bin").read_bytes()
    assert convert(tmp_path / "model", tmp_path / "file.bin") == 2
    assert (tmp_path / "file.bin").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.bin", "hub", "model"]


@pytest.mark.parametrize(("arguments", "word"), [
    ([golden_file("dinov2"), "hub"], "heads"),
    ([golden_file("dinov2"), "hub", "--heads", "2"], "image_size"),
    ([golden_file("dinov2"), "hub", "--heads", "2", "--image-size", "1", "2", "3"], "HEIGHTxWIDTH"),
    ([golden_file("dinov2"), "hub", "--heads", "2", "--image-size", "64"], "mis-shaped"),
    ([golden_file("dinov2"), "hub", *SHAPE, "--labels", "nothing"], "nothing"),
    ([golden_file("dinov2"), "hub", *SHAPE, "--labels", "coco_panoptic"], "133"),
    ([golden_file("dinov2"), "hub", *SHAPE, "--stuff", "11"], "11"),
    ([golden_file("dinov2"), "hub", *SHAPE, "--backbone", BACKBONE_OF_KIND["dinov2"]], BACKBONE_OF_KIND["dinov2"]),
    ([golden_file("dinov2"), "hub.bin", *SHAPE], "folder"),
    ([GOLDEN / "resize.safetensors", "hub"], "network.q.weight"),
    (["./nothing.bin", "hub"], "nothing.bin"),
])  # fmt: skip
def test_wrong_files_and_options_are_one_line_of_error(arguments, word, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert convert(*arguments) == 2
    assert word in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("kind", "suffix"), [
    ("dinov2", ".safetensors"), ("dinov2", ".bin"), ("dinov2", ".ckpt"), ("dinov2_swiglu", ".bin"), ("dinov3", ".bin"),
    ("eva02", ".bin"),
])  # fmt: skip
def test_our_models_are_unchanged_after_both_directions(kind, suffix, tmp_path):
    """Also heads, classes, stuff, task and size, which no shape holds. Options override them."""
    names = {0: "cat", 1: "sky", 2: "road"}
    labels = {"id2label": names, "label2id": {name: label for label, name in names.items()}}
    model = tiny_model(kind, num_labels=3, **labels, stuff_label_ids=[1, 2], task="panoptic", image_size=96)
    model.save_pretrained(tmp_path / "hub")
    file = tmp_path / f"authors{suffix}"
    assert convert(tmp_path / "hub", file) == 0
    assert convert(file, tmp_path / "back") == 0
    before, after = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("hub", "back"))
    assert after == before
    with torch.no_grad():
        pixels = torch.randn(1, 3, 96, 96)
        back = AutoModelForUniversalSegmentation.from_pretrained(tmp_path / "back").eval()
        assert torch.equal(back(pixels).class_queries_logits, model(pixels).class_queries_logits)
    assert convert(file, tmp_path / "other", "--task", "instance", "--stuff") == 0
    other = json.loads((tmp_path / "other" / "config.json").read_text())
    assert (other["task"], other["stuff_label_ids"], other["num_attention_heads"]) == ("instance", [], 4)


@pytest.mark.parametrize(
    "statistics",
    [{"image_mean": [0.5, 0.25, 0.125], "image_std": [0.5, 0.5, 0.25]}, {"image_mean": 0.5, "image_std": [0.25]}],
)
def test_mean_and_deviation_are_kept(tmp_path, capsys, statistics):
    tiny_model("dinov3").save_pretrained(tmp_path / "hub")
    EoMTImageProcessor(task="panoptic", size=64, **statistics).save_pretrained(tmp_path / "hub")
    assert convert(tmp_path / "hub", tmp_path / "file.bin") == 0
    assert convert(tmp_path / "file.bin", tmp_path / "back") == 0
    saved = json.loads((tmp_path / "back/preprocessor_config.json").read_text())
    for key, value in statistics.items():
        assert saved[key] == np.broadcast_to(value, 3).tolist()
    assert convert(tmp_path / "hub", tmp_path / "delta.bin", "--delta-from", tmp_path / "none.safetensors") == 2
    assert "--delta-from" in capsys.readouterr().err


def test_damaged_and_nan_weights_are_refused(tmp_path, capsys):
    state = convert_to_authors(tiny_model())
    torch.save(state, tmp_path / "good.bin")
    content = bytearray((tmp_path / "good.bin").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "flipped.bin").write_bytes(content)
    state["network.q.weight"][0, 0] = float("nan")
    torch.save(state, tmp_path / "nan.bin")
    for name, value in (("flipped", "flipped.bin"), ("nan", "network.q.weight")):
        assert convert(tmp_path / f"{name}.bin", tmp_path / "hub", "--heads", "4") == 2
        assert value in capsys.readouterr().err
        assert not (tmp_path / "hub").exists()
    assert convert(tmp_path / "good.bin", tmp_path / "hub", "--heads", "4") == 0
