"""Mean IoU: equal to counting by class; ignored pixels, absent classes, and errors."""

import numpy as np
import pytest
import torch

from eomt.training import MeanIoU


def test_mean_iou_equals_counting_by_class():
    rng = np.random.default_rng(0)
    true = [rng.choice([0, 1, 2, 3, 255], size) for size in ((7, 9), (12, 5), (8, 8))]
    predicted = [np.where(rng.random(t.shape) < 0.6, np.minimum(t, 3), rng.integers(0, 4, t.shape)) for t in true]
    metric = MeanIoU(num_labels=5)
    metric.add_batch(predictions=predicted[:2], references=[torch.from_numpy(t) for t in true[:2]])
    metric.add_batch(predictions=[torch.from_numpy(predicted[2])], references=[true[2].astype(np.uint8)])
    result = metric.compute()
    t, p = (np.concatenate([m.ravel() for m in maps]) for maps in (true, predicted))
    p, t = p[t != 255], t[t != 255]
    iou = [((p == c) & (t == c)).sum() / ((p == c) | (t == c)).sum() for c in range(4)]
    assert result["per_category_iou"][:4] == pytest.approx(iou, abs=1e-12)
    assert np.isnan(result["per_category_iou"][4])  # class 4 is absent
    assert result["mean_iou"] == pytest.approx(np.mean(iou), abs=1e-12)
    assert result["overall_accuracy"] == pytest.approx((p == t).mean(), abs=1e-12)
    assert result["mean_accuracy"] == pytest.approx(np.mean([(p[t == c] == c).mean() for c in range(4)]), abs=1e-12)
    assert metric.confusion.sum() == len(t)


def test_only_the_ground_truth_decides_which_pixels_are_ignored():
    metric = MeanIoU(num_labels=2)
    metric.add(prediction=np.array([[255, 0, 1, 1]]), reference=np.array([[0, 0, 1, 255]]))
    result = metric.compute()
    assert result["per_category_iou"] == [0.5, 1.0]


def test_without_images_mean_iou_is_nan():
    assert np.isnan(MeanIoU(num_labels=2).compute()["mean_iou"])


@pytest.mark.parametrize(("prediction", "reference", "value"), [
    ([[2]], [[0]], "label 2"),
    ([[0]], [[7]], "label 7"),
    ([[0]], [[-1]], "label -1"),
    ([[0, 0]], [[0]], "1×2"),
    ([[0.0]], [[0]], "float64"),
    ([0], [[0]], r"\(1,\)"),
])  # fmt: skip
def test_wrong_labels_shapes_and_types_are_refused(prediction, reference, value):
    with pytest.raises(ValueError, match=value):
        MeanIoU(num_labels=2).add(prediction=np.array(prediction), reference=np.array(reference))


def test_processes_without_a_group_are_refused():
    with pytest.raises(ValueError, match="num_process=2"):
        MeanIoU(num_labels=2, num_process=2, process_id=0)
