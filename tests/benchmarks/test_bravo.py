"""BRAVO: files as the challenge's archives have them, its averages, and what is missing."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import hmean

from benchmarks.bravo import SAMPLES, SUBSETS, draw_samples, find_images, main, read_samples
from eomt import EoMTImageProcessor
from eomt.configuration.labels import label_space
from eomt.training.metrics import OutOfDistribution
from tests.models import tiny_model

SIZE = (24, 40)
CITY = ("_leftImg8bit.png", "_gt_labelTrainIds.png", "_gt_invIds.png")
NAMES = {  # subset → image, ground truth, invalid mask: names as listed in the challenge's repository
    name: [stem + suffix for suffix in suffixes]
    for name, stem, suffixes in (
        *(
            (
                f"ACDC{weather}",
                f"bravo_ACDC/{weather}/test/GOPR0475/GOPR0475_frame_000247",
                ("_rgb_anon.png", *CITY[1:]),
            )
            for weather in ("fog", "rain", "night", "snow")
        ),
        *(
            (name, f"bravo_{name}/frankfurt/frankfurt_000000_000294", CITY)
            for name in ("synrain", "synflare", "outofcontext")
        ),
        ("synobjs", "bravo_synobjs/armchair/1", (".png", "_gt.png", "_mask.png")),
        (
            "SMIYC",
            "bravo_SMIYC/RoadAnomaly21/images/airplane0000",
            (".jpg", "_labels_semantic_fake.png", "_labels_semantic.png"),
        ),
    )
}


def truth(folder, subset):
    """Files of ground truth and invalid pixels; of two subsets in a folder beside the images."""
    place = folder / "bravo_GT" if subset in ("synrain", "SMIYC") else folder
    return [place / name for name in NAMES[subset][1:]]


@pytest.fixture
def folder(tmp_path):
    for seed, (subset, (image, *_)) in enumerate(NAMES.items()):
        random = np.random.default_rng(seed)
        labels, invalid = truth(tmp_path, subset)
        for file in (tmp_path / image, labels):
            file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (*SIZE, 3), np.uint8)).save(tmp_path / image)
        ids = random.choice([0, 1, 5, 18, 255], SIZE).astype(np.uint8)
        if subset == "SMIYC":
            ids = np.where(ids == 255, 255, 0).astype(np.uint8)
        Image.fromarray(ids).save(labels)
        strange = random.random(SIZE) < (0.3 if subset in ("synobjs", "SMIYC", "synflare") else 0)
        Image.fromarray(strange.astype(np.uint8)).save(invalid)
    return tmp_path


@pytest.fixture
def predictions(folder, tmp_path_factory):
    """Raw files of a submission: `_pred.png` and `_conf.png` under the images' names."""
    out = tmp_path_factory.mktemp("raw")
    for seed, (subset, (image, *_)) in enumerate(NAMES.items()):
        random = np.random.default_rng(100 + seed)
        true = np.asarray(Image.open(truth(folder, subset)[0]))
        wrong = random.random(SIZE) < 0.3
        name = out / image.rpartition(".")[0]
        name.parent.mkdir(parents=True, exist_ok=True)
        pred = np.where((true == 255) | wrong, random.integers(0, 19, SIZE), true).astype(np.uint8)
        Image.fromarray(pred).save(f"{name}_pred.png")
        Image.fromarray(random.integers(60000, 65536, SIZE).astype(np.uint16)).save(f"{name}_conf.png")
    return out


def read(path):
    return np.asarray(Image.open(path)).astype(int)


def test_subsets_and_averages(folder, predictions, tmp_path, capsys):
    """Of the metric, which tests/training/metrics compares with the challenge's formulas."""
    out = tmp_path / "report"
    main(["--data", str(folder), "--predictions", str(predictions), "--output", str(out)])
    text = capsys.readouterr().out
    result = json.loads((out / "metrics.json").read_text())["metrics"]
    assert list(result["subsets"]) == [subset.name for subset in SUBSETS]
    ious, auprcs = [], {}
    for subset, (image, *_) in NAMES.items():
        stem = predictions / image.rpartition(".")[0]
        maps = [read(file) for file in (*truth(folder, subset), f"{stem}_pred.png", f"{stem}_conf.png")]
        metric = OutOfDistribution(num_labels=19)
        prediction = {"segmentation": maps[2], "confidence": maps[3]}
        metric.add(prediction=prediction, reference={"segmentation": maps[0], "invalid": maps[1]})
        expected, row = metric.compute(), result["subsets"][subset]
        assert row["images"] == 1
        assert row["mean_iou"] == (None if subset == "SMIYC" else expected["mean_iou"])
        assert row["auprc"] == (expected["auprc"] if maps[1].any() else None)
        ious += [] if subset == "SMIYC" else [expected["mean_iou"]]
        auprcs[subset] = expected["auprc"]
    assert result["mean_iou"]["arithmetic"] == pytest.approx(np.mean(ious), abs=1e-12)
    assert result["mean_iou"]["harmonic"] == pytest.approx(hmean(ious), abs=1e-12)
    both = [auprcs["synobjs"], auprcs["SMIYC"]]
    assert result["auprc"] == pytest.approx({"arithmetic": np.mean(both), "harmonic": hmean(both)}, abs=1e-12)
    assert "77.20  mIoU out-of-distribution, Table 8: EoMT, ViT-L" in text
    assert f"{100 * np.mean(ious):.2f}" in text


def test_a_model_and_its_raw_files_score_the_same(folder, tmp_path):
    names = label_space("cityscapes_semantic").names[::-1]  # another order than the train ids'
    model = tiny_model(num_labels=19, id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)})
    with torch.no_grad():
        model.class_predictor.weight.mul_(30)
    model.set_attn_mask_probs([0, 0])
    model.save_pretrained(tmp_path / "model")
    EoMTImageProcessor(task="semantic", size=32).save_pretrained(tmp_path / "model")
    common = ["--data", str(folder), "--subsets", "ACDCfog", "synobjs", "--output", str(tmp_path)]
    raw = str(tmp_path / "raw")
    main(["--model", str(tmp_path / "model"), *common, "--save-predictions", raw])
    of_model = json.loads((tmp_path / "metrics.json").read_text())["metrics"]
    main(["--predictions", raw, *common])
    assert json.loads((tmp_path / "metrics.json").read_text())["metrics"] == of_model
    assert 0 < of_model["auprc"]["harmonic"] < 1

    stem = tmp_path / "raw" / NAMES["synobjs"][0].rpartition(".")[0]
    image = Image.open(folder / NAMES["synobjs"][0])
    processor = EoMTImageProcessor(task="semantic", size=32)
    inputs = processor(image, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    found = processor.post_process_semantic_confidence(outputs, [SIZE])[0]
    assert np.array_equal(read(f"{stem}_pred.png"), 18 - found["segmentation"].numpy())
    levels = np.floor(found["confidence"].double().numpy() * 65535)
    assert np.array_equal(read(f"{stem}_conf.png"), levels)


def test_the_fixed_sample(folder, tmp_path):
    labels = np.random.default_rng(0).choice([3, 255], (700, 400), p=[0.9, 0.1])
    np.random.seed(1)
    drawn = np.sort(np.random.choice(np.nonzero(labels.ravel() != 255)[0], SAMPLES, replace=False))
    assert np.array_equal(draw_samples(labels), drawn)
    assert np.array_equal(draw_samples(labels[:20]), np.flatnonzero(labels[:20] != 255))

    zstandard = pytest.importorskip("zstandard")
    indices = np.array([70000, 70001, 70256, 70512, 400000])
    data = bytearray(len(indices).to_bytes(3, "little") + int(indices[0]).to_bytes(3, "little"))
    for step in np.diff(indices).tolist():
        data += bytes([step]) if step < 256 else b"\0" + step.to_bytes(3, "little")
    file = tmp_path / "a_samples.bin"
    file.write_bytes(zstandard.ZstdCompressor(level=9).compress(bytes(data)))
    assert np.array_equal(read_samples(file), indices)
    few = NAMES["synobjs"][0].replace(".png", "_samples.bin")
    small = bytes([2, 0, 0, 5, 0, 0, 4])
    (folder / few).write_bytes(zstandard.ZstdCompressor().compress(small))
    assert find_images(folder, ["synobjs"])[0].reference()["pixels"].tolist() == [5, 9]


def test_missing_files_are_errors(folder, predictions):
    (predictions / "bravo_ACDC/fog/test/GOPR0475/GOPR0475_frame_000247_rgb_anon_conf.png").unlink()
    with pytest.raises(ValueError, match="GOPR0475_frame_000247_rgb_anon_conf"):
        main(["--data", str(folder), "--predictions", str(predictions)])
    truth(folder, "synrain")[1].unlink()
    with pytest.raises(ValueError, match="frankfurt_000000_000294_gt_invIds"):
        find_images(folder)
    (folder / NAMES["SMIYC"][0]).unlink()
    for subset in ("SMIYC", "fog"):  # none of its images, and no such subset
        with pytest.raises(ValueError, match=subset):
            find_images(folder, [subset])
