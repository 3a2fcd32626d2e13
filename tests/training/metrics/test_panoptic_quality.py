"""PQ: equal to panopticapi's numbers and, on random scenes, to its rules written out; errors and speed."""

import json
import time

import numpy as np
import pytest
import torch
from PIL import Image

from eomt.training import PanopticQuality
from tests.models import GOLDEN


def rgb_ids(path):
    rgb = np.asarray(Image.open(path).convert("RGB"), np.int64)
    return rgb @ np.array([1, 256, 65536])


def test_equals_panopticapi_on_coco():
    examples = json.loads((GOLDEN / "coco-sample/panoptic_examples.json").read_text())
    predictions = json.loads((GOLDEN / "panoptic_pred.json").read_text())["annotations"]
    expected = json.loads((GOLDEN / "panoptic_pq.json").read_text())
    ids = sorted(c["id"] for c in examples["categories"])
    stuff = [i for i, c in enumerate(ids) if not next(x for x in examples["categories"] if x["id"] == c)["isthing"]]

    def entry(annotation, folder):
        info = [
            {"id": s["id"], "label_id": ids.index(s["category_id"]), "iscrowd": s.get("iscrowd", 0)}
            for s in annotation["segments_info"]
        ]
        return {"segmentation": rgb_ids(GOLDEN / folder / annotation["file_name"]), "segments_info": info}

    metric = PanopticQuality(num_labels=133, stuff_label_ids=stuff)
    for annotation in examples["annotations"]:
        prediction = next(p for p in predictions if p["image_id"] == annotation["image_id"])
        metric.add_batch(
            predictions=[entry(prediction, "panoptic_pred")],
            references=[entry(annotation, "coco-sample/panoptic_examples")],
        )
    result = metric.compute()
    for suffix, group in (("", "all"), ("_things", "things"), ("_stuff", "stuff")):
        assert result[f"num_classes{suffix}"] == expected[group]["n"]
        for key in ("pq", "sq", "rq"):
            assert result[key + suffix] == pytest.approx(expected[group][key], abs=1e-9)
    present = {c for c, r in result["per_class"].items() if r["tp"] + r["fp"] + r["fn"]}
    assert present == {ids.index(int(c)) for c in expected["per_class"]}
    for category, values in expected["per_class"].items():
        for key, value in values.items():
            assert result["per_class"][ids.index(int(category))][key] == pytest.approx(value, abs=1e-9)


def slow_pq(pairs, num_labels):
    iou_sum, tp, fp, fn = (np.zeros(num_labels) for _ in range(4))
    for prediction, reference in pairs:
        p_info = {s["id"]: s for s in prediction["segments_info"]}
        t_info = {s["id"]: s for s in reference["segments_info"]}
        p_map, t_map = prediction["segmentation"], reference["segmentation"]
        void = ~np.isin(t_map, list(t_info))
        hit_p, hit_t = set(), set()
        for t in t_info.values():
            for p in p_info.values():
                if t["iscrowd"] or t["label_id"] != p["label_id"]:
                    continue
                pm, tm = p_map == p["id"], t_map == t["id"]
                iou = (pm & tm).sum() / max(1, ((pm | tm) & ~(pm & void)).sum())
                if iou > 0.5:
                    hit_p.add(p["id"])
                    hit_t.add(t["id"])
                    iou_sum[t["label_id"]] += iou
                    tp[t["label_id"]] += 1
        for t in t_info.values():
            fn[t["label_id"]] += t["id"] not in hit_t and not t["iscrowd"]
        for p in p_info.values():
            crowds = [t["id"] for t in t_info.values() if t["iscrowd"] and t["label_id"] == p["label_id"]]
            excuse = void | (t_map == crowds[-1]) if crowds else void
            pm = p_map == p["id"]
            fp[p["label_id"]] += p["id"] not in hit_p and (pm & excuse).sum() / pm.sum() <= 0.5
    n = tp + fp + fn
    pq = iou_sum[n > 0] / (tp + fp / 2 + fn / 2)[n > 0]
    return pq.mean(), (tp, fp, fn)


def scene(rng, num_labels, size=(30, 40), crowd=0.0, first=0):
    """A random scene: overlapping boxes and void."""
    ids = np.full(size, -1)
    for i in range(first, first + 7):
        y, x = rng.integers(0, size[0] - 8), rng.integers(0, size[1] - 8)
        ids[y : y + rng.integers(4, 16), x : x + rng.integers(4, 20)] = i
    info = [
        {"id": int(i), "label_id": int(rng.integers(num_labels)), "iscrowd": int(rng.random() < crowd)}
        for i in np.unique(ids[ids >= 0])
    ]
    return {"segmentation": ids, "segments_info": info}


def disturbed(rng, reference):
    """A prediction near the ground truth: shifted, with some wrong classes."""
    ids = np.roll(reference["segmentation"], rng.integers(-2, 3), 1)
    ids = np.where(rng.random(ids.shape) < 0.05, -1, ids)
    info = [
        {"id": s["id"], "label_id": s["label_id"] if rng.random() < 0.8 else 0}
        for s in reference["segments_info"]
        if (ids == s["id"]).any()
    ]
    return {"segmentation": ids, "segments_info": info}


@pytest.mark.parametrize("seed", range(12))
def test_pq_equals_the_written_rules(seed):
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(3):
        reference = scene(rng, 4, crowd=0.3, first=seed % 3)
        pairs.append((disturbed(rng, reference), reference))
    metric = PanopticQuality(num_labels=4)
    metric.add_batch(predictions=[p for p, _ in pairs], references=[r for _, r in pairs])
    result = metric.compute()
    pq, counts = slow_pq(pairs, 4)
    assert result["pq"] == pytest.approx(pq, abs=1e-9)
    for key, values in zip(("tp", "fp", "fn"), counts, strict=True):
        assert [result["per_class"][c][key] for c in range(4)] == values.tolist()


def test_a_perfect_prediction_has_pq_1_for_any_ids():
    rng = np.random.default_rng(5)
    reference = scene(rng, 3)
    shuffled = [s | {"id": s["id"] * 1000 + 1} for s in reversed(reference["segments_info"])]
    ids = torch.tensor(
        np.where(reference["segmentation"] < 0, 0, reference["segmentation"] * 1000 + 1), dtype=torch.int32
    )
    metric = PanopticQuality(num_labels=3)
    metric.add(prediction={"segmentation": ids, "segments_info": shuffled}, reference=reference)
    result = metric.compute()
    assert result["pq"] == result["sq"] == result["rq"] == 1
    assert np.isnan(metric.compute()["pq"])  # `compute` resets the metric


def test_zero_is_void_unless_a_segment_has_it():
    zero = {"segmentation": np.zeros((4, 4), int), "segments_info": [{"id": 0, "label_id": 1}]}
    one = {"segmentation": np.ones((4, 4), int), "segments_info": [{"id": 1, "label_id": 1, "iscrowd": 0}]}
    void = {"segmentation": np.zeros((4, 4), int), "segments_info": []}
    metric = PanopticQuality(num_labels=2, stuff_label_ids=[1])
    metric.add(prediction=zero, reference=one)
    assert metric.compute()["pq_stuff"] == 1
    metric.add(prediction=void, reference=one)
    assert metric.compute()["per_class"][1] == {"pq": 0, "sq": 0, "rq": 0, "tp": 0, "fp": 0, "fn": 1}


@pytest.mark.parametrize(("dtype", "last"), [(np.uint8, 255), (np.int16, 32767), (np.int64, 2**40)])
def test_the_largest_id_of_a_dtype_is_counted(dtype, last):
    ids = np.array([[1, last]], dtype)
    info = [{"id": 1, "label_id": 0}, {"id": last, "label_id": 1}]
    entry = {"segmentation": ids, "segments_info": info}
    metric = PanopticQuality(num_labels=2)
    metric.add(prediction=entry, reference=entry)
    assert metric.compute()["pq"] == 1


@pytest.mark.parametrize(("change", "value"), [
    ({"segmentation": np.full((4, 4), 9)}, "id 9"),
    ({"segmentation": np.full((4, 4), -2)}, "id -2"),
    ({"segmentation": np.zeros((4, 4))}, "float64"),
    ({"segmentation": np.ones((4, 5), int)}, "4×5"),
    ({"segments_info": [{"id": 1, "label_id": 7}]}, "label_id 7"),
    ({"segments_info": [{"id": 1, "label_id": 0}] * 2}, "id 1"),
    ({"segments_info": [{"id": 1, "label_id": 0}, {"id": 3, "label_id": 0}]}, "segment 3"),
])  # fmt: skip
def test_wrong_input_is_named_with_its_image(change, value):
    entry = {"segmentation": np.ones((4, 4), int), "segments_info": [{"id": 1, "label_id": 0}]}
    with pytest.raises(ValueError, match=f"image 42.*{value}"):
        PanopticQuality(num_labels=2).add(prediction=entry | change, reference=entry | {"image_id": 42})
    with pytest.raises(ValueError, match="label 3"):
        PanopticQuality(num_labels=3, stuff_label_ids=[3])


def test_an_image_takes_milliseconds():
    """640 × 480 pixels with 20 segments in under 10 ms on one core; with noise in every pixel in under 60 ms."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:480, :640]
    blobs = np.where(np.hypot(y - 200, x - 300) < 50, 7, (y // 120) * 5 + x // 128)  # 20 segments
    noise = rng.integers(0, 20, (480, 640))
    metric = PanopticQuality(num_labels=20)
    for ids, limit in ((blobs, 0.010), (noise, 0.060)):
        info = [{"id": int(i), "label_id": int(i), "iscrowd": 0} for i in np.unique(ids)]
        reference = {"segmentation": ids, "segments_info": info}
        prediction = reference | {"segmentation": np.roll(ids, 3, 1)}
        times = []
        for _ in range(7):
            start = time.process_time()
            metric.add(prediction=prediction, reference=reference)
            times.append(time.process_time() - start)
        assert min(times) < limit
