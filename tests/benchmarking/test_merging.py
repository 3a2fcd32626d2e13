"""Token merging on the command line: what is counted, what is found, what is refused."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from eomt import EoMTImageProcessor
from eomt.benchmarking.flops import CountedModel, count_flops
from eomt.benchmarking.merging import ALLOWED_LOSS, Row, search
from eomt.cli import main
from eomt.modeling_eomt.ladder import LadderConfig, LadderForUniversalSegmentation
from eomt.training.data import load_data, make_shapes
from tests.models import tiny_model

LAYERS = ("--merging-layers", "1", "2")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp("shapes"), train=1, val=3, size=(40, 70))


@pytest.fixture(scope="module")
def saved(shapes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    _, space = load_data(shapes, task="panoptic")
    names = {"id2label": space.id2label, "label2id": space.label2id, "num_labels": space.num_labels}
    model = tiny_model(task="panoptic", stuff_label_ids=list(space.stuff_label_ids), **names)
    model.set_attn_mask_probs([0, 0])
    model.save_pretrained(folder)
    EoMTImageProcessor(task="panoptic", size=64).save_pretrained(folder)
    return folder


def test_counts_follow_the_tokens_that_are_left():
    """12 N D² + 2 N² D + 10 N D a block, N after the merge for its MLP and norm, and the product that finds pairs."""
    model, width, queries = tiny_model(), 48, 7
    model.set_attn_mask_probs([0, 0])
    pixels = torch.nn.functional.interpolate(torch.randn(1, 3, 3, 3), scale_factor=32)
    whole = count_flops(model, pixels)
    model.set_token_merging(layers=(1, 2), threshold=0.5)
    lengths = []
    hooks = [layer.mlp.register_forward_hook(lambda m, i, out: lengths.append(out.shape[1])) for layer in model.layers]
    counted = CountedModel(model)
    with torch.no_grad():
        assert torch.equal(counted(pixels).masks_queries_logits, model(pixels).masks_queries_logits)
    for hook in hooks:
        hook.remove()
    first, second = lengths[:2]
    assert 5 < second < first < 5 + 36
    assert lengths[2:4] == [second + queries] * 2

    def attention(tokens: int) -> int:
        return 4 * tokens * width**2 + 2 * tokens**2 * width + 5 * tokens * width

    def mlp(tokens: int) -> int:
        return 8 * tokens * width**2 + 5 * tokens * width

    def blocks(after_first: int, after_second: int) -> int:
        joint = after_second + queries
        split = attention(41) + mlp(after_first) + attention(after_first) + mlp(after_second)
        return split + 2 * (attention(joint) + mlp(joint)) + 5 * joint * width

    even = (first - 5) // 2
    pairs = even * (first - 5 - even) * width
    assert whole - counted.flops == blocks(41, 41) - blocks(first, second) - pairs


def searched(percent):
    measured = []

    def measure(threshold):
        measured.append(threshold)
        return Row(threshold, 1.0, percent(threshold))

    rows, found = search(measure)
    return rows, found, measured


def test_the_search_halves_the_interval_of_the_first_loss():
    rows, found, measured = searched(lambda t: 50.0 if t is None or t >= 0.873 else 49.0)
    assert 0.873 <= found.threshold <= 0.873 + 0.005
    assert measured[:5] == [None, 0.98, 0.95, 0.9, 0.85]
    assert [row.threshold for row in rows[1:]] == sorted(measured[1:], reverse=True)
    assert searched(lambda t: 50.0)[1].threshold == 0.0
    rows, found, _ = searched(lambda t: 50.0 if t is None else 40.0)
    assert found is None
    assert rows[1].threshold > 0.99
    edge = searched(lambda t: 50.0 if t is None else 50.0 - ALLOWED_LOSS)[1]
    assert edge.threshold == 0.0  # exactly what is allowed


def test_calibration_of_a_model(saved, shapes, tmp_path, capsys):
    out = tmp_path / "out.json"
    options = ("--calibrate-merging", "--data", str(shapes), "--json", str(out), "--device", "cpu")
    assert main(["benchmark", "--model", str(saved), *options, *LAYERS]) == 0
    text, result = capsys.readouterr().out, json.loads(out.read_text())
    assert result["rows"][0]["threshold"] is None
    assert result["images"] == 3
    assert all(row["gflops"] <= result["rows"][0]["gflops"] for row in result["rows"][1:])
    assert result["rows"][-1]["gflops"] < result["rows"][0]["gflops"]
    assert ("--token-merging" in text) == (result["threshold"] is not None)


def test_evaluate_predict_and_benchmark_take_it(saved, shapes, tmp_path, capsys):
    results = []
    for options in ((), ("--token-merging", "0.3", *LAYERS), ("--token-merging", "1.5", *LAYERS)):
        common = ("--data", str(shapes), "--json", "--num-workers", "0", "--device", "cpu")
        assert main(["evaluate", str(saved), *common, *options]) == 0
        results.append(json.loads(capsys.readouterr().out))
    off, merged, above = results
    assert merged["token_merging"] == 0.3
    assert merged["metrics"]["gflops_per_image"] < above["metrics"]["gflops_per_image"]
    assert above["metrics"]["pq"] == off["metrics"]["pq"]

    photos = tmp_path / "photos"
    photos.mkdir()
    Image.fromarray(np.zeros((40, 70, 3), np.uint8)).save(photos / "plain.png")
    noise = np.random.default_rng(0).integers(0, 256, (70, 40, 3), np.uint8)
    Image.fromarray(noise).save(photos / "noise.png")
    run = ["predict", str(photos), "--model", str(saved), "--workers", "0", "--output"]
    assert main([*run, str(tmp_path / "out"), "--token-merging", "0.3", *LAYERS]) == 0
    assert json.loads((tmp_path / "out/run.json").read_text())["token_merging"] == [0.3, 1, 2]
    assert main([*run, str(tmp_path / "out")]) == 2  # other settings
    assert "token_merging" in capsys.readouterr().err

    counts = []
    for options in ((), ("--token-merging", "0.3", *LAYERS)):
        file = tmp_path / f"{len(counts)}.json"
        common = ("--images", str(photos), "--json", str(file), "--warm-up", "0", "--repeats", "2", "--batch-size", "2")
        assert main(["benchmark", "--model", str(saved), "--device", "cpu", *common, *options]) == 0
        (row,) = json.loads(file.read_text())["rows"]
        assert row["throughput"] > 0
        counts.append(row["gflops"])
    assert counts[1] < counts[0]


def test_what_cannot_merge(saved, shapes, tmp_path, capsys):
    config = LadderConfig.for_backbone(
        "vit_small_patch14_reg4_dinov2", step=3, hidden_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_blocks=1, num_labels=5, image_size=64, feature_size=32, decoder_attention_heads=2, dim_feedforward=32,
    )  # fmt: skip
    LadderForUniversalSegmentation(config).save_pretrained(tmp_path / "ladder")
    EoMTImageProcessor(task="panoptic", size=64).save_pretrained(tmp_path / "ladder")
    photo = str(next(shapes.rglob("*.png")))
    merging = ("--token-merging", "0.9")
    cases = [
        (["predict", photo, "--model", str(tmp_path / "ladder"), "--output", str(tmp_path / "o"), *merging],
         "token merging is for EoMT; step 3"),
        (["predict", photo, "--model", str(saved), "--output", str(tmp_path / "p"), *merging],
         "layers [1, 7]: give two of 1 … 2"),
        (["benchmark", "--model", str(saved), *merging], "needs --images"),
        (["benchmark", "--model", str(saved), "--calibrate-merging", "--data", "none"],
         "layers [1, 7]: give two of 1 … 2"),
        (["benchmark", "--model", str(saved), "--calibrate-merging"], "--data go together"),
        (["benchmark", "--model", str(saved), "--calibrate-merging", "--data", "x", "--image-size", "32"],
         "--image-size has no meaning with --calibrate-merging"),
        (["benchmark", "--model", str(saved), "--calibrate-merging", "--data", "x", "--json", str(saved)], "exists"),
        (["benchmark", "--model", str(saved), str(saved), "--calibrate-merging", "--data", "x"], "takes one model"),
        (["evaluate", "--predictions", "x", "--task", "panoptic", "--data", "x", *merging], "needs a model"),
    ]  # fmt: skip
    for arguments, message in cases:
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("eomt ") == 1  # one line, beside the bars of loading
        assert "Traceback" not in error
