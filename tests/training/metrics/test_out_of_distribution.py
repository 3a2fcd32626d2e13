"""BRAVO's two metrics equal brute force over every pixel."""

import numpy as np
import pytest
import torch

from eomt.training.metrics import OutOfDistribution


def brute_average_precision(positive, score):
    """Σ ΔR · P over falling scores, a step for each distinct score, as scikit-learn's average_precision_score."""
    total, recall_before = 0.0, 0.0
    for threshold in sorted(set(score.tolist()), reverse=True):
        chosen = score >= threshold
        recall = positive[chosen].sum() / positive.sum()
        total += (recall - recall_before) * positive[chosen].mean()
        recall_before = recall
    return total


def synthetic(seed, images=3, size=(13, 17)):
    rng = np.random.default_rng(seed)
    predictions, references = [], []
    for _ in range(images):
        true = rng.choice([0, 1, 2, 255], size)
        invalid = (rng.random(size) < 0.2).astype(np.uint8) * 7
        confidence = np.round(rng.random(size) * (1 - 0.5 * (invalid > 0)), 2) * 1.02  # ties, and some above 1
        labels = np.where(rng.random(size) < 0.7, np.minimum(true, 2), rng.integers(0, 3, size))
        predictions.append({"segmentation": labels, "confidence": confidence})
        references.append({"segmentation": true, "invalid": invalid})
    return predictions, references


@pytest.mark.parametrize("seed", range(4))
def test_equals_brute_force(seed):
    predictions, references = synthetic(seed)
    metric = OutOfDistribution(num_labels=3)
    metric.add_batch(predictions=predictions, references=references)
    result = metric.compute()

    def flat(entries, key):
        return np.concatenate([e[key].ravel() for e in entries])

    true, invalid = flat(references, "segmentation"), flat(references, "invalid") > 0
    level = np.floor(flat(predictions, "confidence").clip(0, 1) * 65535)
    kept = true != 255
    assert result["auprc"] == pytest.approx(brute_average_precision(invalid[kept], 65535 - level[kept]), abs=1e-12)
    inside = kept & ~invalid
    p, t = flat(predictions, "segmentation")[inside], true[inside]
    iou = [((p == c) & (t == c)).sum() / ((p == c) | (t == c)).sum() for c in range(3)]
    assert result["mean_iou"] == pytest.approx(np.mean(iou), abs=1e-12)
    assert result["invalid_pixels"] == (invalid & kept).sum()


def test_uint16_tensors_and_the_sampled_pixels():
    predictions, references = synthetic(7, images=1)
    stored = {"confidence": np.floor(predictions[0]["confidence"].clip(0, 1) * 65535).astype(np.uint16)}
    metric = OutOfDistribution(num_labels=3)
    metric.add(prediction=predictions[0], reference=references[0])
    expected = metric.compute()
    metric.add(prediction=predictions[0] | stored, reference={k: torch.from_numpy(v) for k, v in references[0].items()})
    assert metric.compute()["auprc"] == expected["auprc"]

    pixels = np.arange(0, 13 * 17, 3)
    metric.add(prediction=predictions[0], reference=references[0] | {"pixels": pixels})
    kept = references[0]["segmentation"].ravel()[pixels] != 255
    positive = references[0]["invalid"].ravel()[pixels][kept] > 0
    score = 65535 - stored["confidence"].ravel()[pixels][kept].astype(int)
    assert metric.compute()["auprc"] == pytest.approx(brute_average_precision(positive, score), abs=1e-12)


def test_maps_of_unlike_sizes_are_refused():
    with pytest.raises(ValueError, match=r"image a.*\(2, 3\)"):
        OutOfDistribution(num_labels=1).add(
            prediction={"segmentation": np.zeros((2, 2), int), "confidence": np.ones((2, 3))},
            reference={"segmentation": np.zeros((2, 2), int), "invalid": np.zeros((2, 2)), "file_name": "a"},
        )
