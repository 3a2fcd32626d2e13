"""BRAVO: the files of the challenge, its averages, its sample of pixels, and missing files."""

import json

import numpy as np
import pytest
import torch
import zstandard
from PIL import Image

from benchmarks.bravo import SAMPLES, draw_samples, find_images, main, read_samples
from eomt import EoMTImageProcessor
from eomt.configuration.labels import label_space
from eomt.training.metrics import OutOfDistribution
from tests.models import tiny_model

SIZE = (24, 40)
NAMES = {  # subset: image, its suffix, suffixes of ground truth and invalid mask, as in the challenge's repository
    "ACDCfog": ("bravo_ACDC/fog/test/GOPR0475/1", "_rgb_anon.png", "_gt_labelTrainIds.png", "_gt_invIds.png"),
    "synrain": ("bravo_synrain/frankfurt/2", "_leftImg8bit.png", "_gt_labelTrainIds.png", "_gt_invIds.png"),
    "synobjs": ("bravo_synobjs/armchair/3", ".png", "_gt.png", "_mask.png"),
    "SMIYC": ("bravo_SMIYC/RoadAnomaly21/images/4", ".jpg", "_labels_semantic_fake.png", "_labels_semantic.png"),
}
WITH_OBJECTS = ("synobjs", "SMIYC")


def image_of(subset: str) -> str:
    return "".join(NAMES[subset][:2])


def ground_truth(folder, subset):
    """Files of ground truth and invalid pixels. For two subsets they are in a folder beside the images."""
    place = folder / "bravo_GT" if subset in ("synrain", "SMIYC") else folder
    return [place / (NAMES[subset][0] + ending) for ending in NAMES[subset][2:]]


@pytest.fixture
def folder(tmp_path):
    for seed, subset in enumerate(NAMES):
        random = np.random.default_rng(seed)
        labels, invalid = ground_truth(tmp_path, subset)
        for file in (tmp_path / image_of(subset), labels):
            file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (*SIZE, 3), np.uint8)).save(tmp_path / image_of(subset))
        ids = random.choice([0, 255] if subset == "SMIYC" else [0, 1, 5, 18, 255], SIZE).astype(np.uint8)
        Image.fromarray(ids).save(labels)
        strange = random.random(SIZE) < (0.3 if subset in WITH_OBJECTS else 0)
        Image.fromarray(strange.astype(np.uint8)).save(invalid)
    return tmp_path


@pytest.fixture
def predictions(folder, tmp_path_factory):
    """Raw files of a submission: `_pred.png` and `_conf.png` with the names of the images."""
    out = tmp_path_factory.mktemp("raw")
    for seed, subset in enumerate(NAMES):
        random = np.random.default_rng(100 + seed)
        true = read(ground_truth(folder, subset)[0])
        wrong = (true == 255) | (random.random(SIZE) < 0.3)
        name = out / image_of(subset).rpartition(".")[0]
        name.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.where(wrong, random.integers(0, 19, SIZE), true).astype(np.uint8)).save(f"{name}_pred.png")
        Image.fromarray(random.integers(60000, 65536, SIZE).astype(np.uint16)).save(f"{name}_conf.png")
    return out


def read(path):
    return np.asarray(Image.open(path)).astype(int)


def test_subsets_and_averages_of_predictions(folder, predictions, tmp_path):
    """tests/training/metrics compares the metric with the formulas of the challenge."""
    out = tmp_path / "report"
    main(["--data", str(folder), "--predictions", str(predictions), "--output", str(out), "--subsets", *NAMES])
    result = json.loads((out / "metrics.json").read_text())["metrics"]
    assert list(result["subsets"]) == list(NAMES)
    ious, auprcs = [], []
    for subset, row in result["subsets"].items():
        stem = predictions / image_of(subset).rpartition(".")[0]
        true, invalid, found, confidence = map(
            read, (*ground_truth(folder, subset), f"{stem}_pred.png", f"{stem}_conf.png")
        )
        metric = OutOfDistribution(num_labels=19)
        prediction = {"segmentation": found, "confidence": confidence}
        metric.add(prediction=prediction, reference={"segmentation": true, "invalid": invalid})
        expected = metric.compute()
        assert row["images"] == 1
        assert row["mean_iou"] == (None if subset == "SMIYC" else expected["mean_iou"])
        assert row["auprc"] == (expected["auprc"] if invalid.any() else None)
        ious += [] if subset == "SMIYC" else [expected["mean_iou"]]
        auprcs += [expected["auprc"]] if subset in WITH_OBJECTS else []
    for key, values in (("mean_iou", ious), ("auprc", auprcs)):
        means = {"arithmetic": np.mean(values), "harmonic": 1 / np.mean(1 / np.array(values))}
        assert result[key] == pytest.approx(means, abs=1e-12)


def test_a_model_and_its_raw_files_have_the_same_score(folder, tmp_path):
    names = label_space("cityscapes_semantic").names[::-1]  # not in the order of the train ids
    model = tiny_model(num_labels=19, id2label=dict(enumerate(names)))
    with torch.no_grad():
        model.class_predictor.weight.mul_(30)
    model.set_attn_mask_probs([0, 0])
    model.save_pretrained(tmp_path / "model")
    processor = EoMTImageProcessor(task="semantic", size=32)
    processor.save_pretrained(tmp_path / "model")
    common = ["--data", str(folder), "--subsets", "ACDCfog", "synobjs", "--output", str(tmp_path)]
    raw = str(tmp_path / "raw")
    main(["--model", str(tmp_path / "model"), *common, "--save-predictions", raw])
    of_model = json.loads((tmp_path / "metrics.json").read_text())["metrics"]
    main(["--predictions", raw, *common])
    assert json.loads((tmp_path / "metrics.json").read_text())["metrics"] == of_model
    assert 0 < of_model["auprc"]["harmonic"] < 1

    inputs = processor(Image.open(folder / image_of("synobjs")), return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    found = processor.post_process_semantic_confidence(outputs, [SIZE])[0]
    stem = tmp_path / "raw" / NAMES["synobjs"][0]
    assert np.array_equal(read(f"{stem}_pred.png"), 18 - found["segmentation"].numpy())
    levels = np.floor(found["confidence"].double().numpy() * 65535)
    assert np.array_equal(read(f"{stem}_conf.png"), levels)


def test_the_sample_of_pixels_is_the_challenges(folder, tmp_path):
    labels = np.random.default_rng(0).choice([3, 255], (700, 400), p=[0.9, 0.1])
    np.random.seed(1)
    drawn = np.sort(np.random.choice(np.nonzero(labels.ravel() != 255)[0], SAMPLES, replace=False))
    assert np.array_equal(draw_samples(labels), drawn)
    assert np.array_equal(draw_samples(labels[:20]), np.flatnonzero(labels[:20] != 255))

    indices = np.array([70000, 70001, 70256, 70512, 400000])
    data = bytearray(len(indices).to_bytes(3, "little") + int(indices[0]).to_bytes(3, "little"))
    for step in np.diff(indices).tolist():
        data += bytes([step]) if step < 256 else b"\0" + step.to_bytes(3, "little")
    file = folder / f"{NAMES['synobjs'][0]}_samples.bin"
    file.write_bytes(zstandard.ZstdCompressor(level=9).compress(bytes(data)))
    assert np.array_equal(read_samples(file), indices)
    assert np.array_equal(find_images(folder, ["synobjs"])[0].reference()["pixels"], indices)


def test_missing_files_are_named(folder, predictions):
    (predictions / "bravo_ACDC/fog/test/GOPR0475/1_rgb_anon_conf.png").unlink()
    with pytest.raises(ValueError, match="1_rgb_anon_conf"):
        main(["--data", str(folder), "--predictions", str(predictions), "--subsets", "ACDCfog"])
    ground_truth(folder, "synrain")[1].unlink()
    with pytest.raises(ValueError, match="2_gt_invIds"):
        find_images(folder, ["synrain"])
    for subset in ("synflare", "fog"):  # no images of this subset, and no such subset
        with pytest.raises(ValueError, match=subset):
            find_images(folder, [subset])
