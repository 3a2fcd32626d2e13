"""Panoptic quality (Kirillov et al., CVPR 2019), equal to panopticapi.

H, W image · P predicted segments · T true segments · index 0 of a count table is void

PQ = Σ IoU of matches / (TP + FP/2 + FN/2) = SQ · RQ. A match has the same class, IoU > 0.5 with void removed from the
union, and ground truth that is not a crowd. An unmatched crowd is not an FN. An unmatched prediction with more than
half of its area on void and crowd of its class is not an FP. Means are over classes with TP + FP + FN > 0.
"""

from collections.abc import Iterable

import numpy as np

from ...configuration.labels import VOID
from ...image_processing.images import look_up
from .streaming import StreamingMetric, image_name, integer_map, same_size

IOU_UNIT = 2.0**42  # IoUs are summed as integer multiples of 1 / IOU_UNIT: the order of summation does not matter


class PanopticQuality(StreamingMetric):
    """PQ, SQ and RQ of all classes, things, stuff and each class: fractions 0 … 1.

    >>> metric = PanopticQuality(num_labels=133, stuff_label_ids=range(80, 133))
    >>> metric.add_batch(predictions=[{"segmentation": ids, "segments_info": [{"id": 0, "label_id": 17}]}],
    ...                  references=[{"segmentation": ids, "segments_info": [{"id": 7, "label_id": 17, "iscrowd": 0}]}])
    >>> metric.compute()["pq"]

    `segmentation`: integer (H, W), torch or numpy. −1 is void, and 0 is void if no segment has this id. Other ids that
    are not listed raise `ValueError`. Means are nan without any segment. `per_class`: {label: {"pq", "sq", "rq", "tp",
    "fp", "fn"}}, zeros for a class without segments, which does not count in the means.
    """

    description = "Panoptic quality, equal to panopticapi."

    def __init__(self, *, num_labels: int, stuff_label_ids: Iterable[int] = (), **kwargs):
        self.stuff_label_ids = frozenset(int(i) for i in stuff_label_ids)
        outside = [i for i in self.stuff_label_ids if not 0 <= i < num_labels]
        if outside:
            raise ValueError(f"stuff label {outside[0]} is not in 0 … {num_labels - 1}")
        super().__init__(num_labels=num_labels, **kwargs)

    def _empty(self) -> np.ndarray:
        return np.zeros((4, self.num_labels), np.int64)  # Σ IoU in IOU_UNIT, TP, FP, FN

    def _add(self, prediction: dict, reference: dict) -> None:
        name = image_name(reference, prediction)
        predicted = _Segments(prediction, f"{name}prediction", self)
        true = _Segments(reference, f"{name}ground truth", self)
        same_size(predicted.map.shape, true.map.shape, name)
        counts = _overlaps(true, predicted)  # int64 [1 + T, 1 + P] pixels; row and column 0 are void
        area = counts.sum(0)[1:]  # [P]
        if (area == 0).any():
            raise ValueError(f"{predicted.what}: segment {predicted.ids[area.argmin()]} is listed but has no pixel")
        iou_sum, tp, fp, fn = self.state

        rows, columns = np.nonzero(counts[1:, 1:])  # the pairs that overlap
        same = (true.labels[rows] == predicted.labels[columns]) & ~true.crowd[rows]
        rows, columns = rows[same], columns[same]
        overlap = counts[1:, 1:][rows, columns]
        union = area[columns] + counts.sum(1)[1:][rows] - overlap - counts[0, 1:][columns]
        matched = 2 * overlap > union
        rows, columns, iou = rows[matched], columns[matched], overlap[matched] / union[matched]
        np.add.at(iou_sum, true.labels[rows], np.rint(iou * IOU_UNIT).astype(np.int64))
        np.add.at(tp, true.labels[rows], 1)

        missed = ~true.crowd
        missed[rows] = False
        np.add.at(fn, true.labels[missed], 1)

        excused = counts[0, 1:].copy()  # [P] pixels on void and on crowd of the class
        crowd_of = {int(true.labels[i]): i for i in np.flatnonzero(true.crowd)}  # the last one, as in panopticapi
        for i, label in enumerate(predicted.labels.tolist()):
            if label in crowd_of:
                excused[i] += counts[1 + crowd_of[label], 1 + i]
        false = 2 * excused <= area
        false[columns] = False
        np.add.at(fp, predicted.labels[false], 1)

    def _result(self, states: list[np.ndarray]) -> dict:
        iou_sum, tp, fp, fn = np.sum(states, 0)
        iou_sum = iou_sum / IOU_UNIT
        found = tp + fp + fn > 0
        half = np.where(found, tp + 0.5 * fp + 0.5 * fn, 1)
        table = {"pq": iou_sum / half, "sq": iou_sum / np.maximum(tp, 1), "rq": tp / half}
        stuff = np.isin(np.arange(self.num_labels), list(self.stuff_label_ids))
        result: dict = {}
        for suffix, group in (("", found), ("_things", found & ~stuff), ("_stuff", found & stuff)):
            for key, values in table.items():
                result[key + suffix] = float(values[group].mean()) if group.any() else float("nan")
            result["num_classes" + suffix] = int(group.sum())
        counts = {"tp": tp, "fp": fp, "fn": fn}
        result["per_class"] = {
            label: {key: float(values[label]) for key, values in table.items()}
            | {key: int(values[label]) for key, values in counts.items()}
            for label in range(self.num_labels)
        }
        return result


class _Segments:
    """The segments of one image: the map, and ids, labels and crowd flags in the listed order."""

    def __init__(self, entry: dict, what: str, metric: PanopticQuality):
        self.what = what
        self.map = integer_map(entry["segmentation"], f"{what}: the segmentation")  # [H, W]
        info = entry["segments_info"]
        self.ids = np.array([int(s["id"]) for s in info], np.int64)  # [T] or [P]
        self.labels = np.array([int(s["label_id"]) for s in info], np.int64)
        self.crowd = np.array([bool(s.get("iscrowd", 0)) for s in info], bool)
        if len(set(self.ids.tolist())) < len(self.ids):
            repeated = next(i for i in self.ids.tolist() if (self.ids == i).sum() > 1)
            raise ValueError(f"{what}: segment id {repeated} is repeated")
        if (self.ids < 0).any():
            raise ValueError(f"{what}: segment id {self.ids.min()} is negative; −1 means void")
        outside = (self.labels < 0) | (self.labels >= metric.num_labels)
        if outside.any():
            i = int(outside.argmax())
            labels = f"0 … {metric.num_labels - 1}"
            raise ValueError(f"{what}: segment {self.ids[i]} has label_id {self.labels[i]}, which is not in {labels}")

    def index(self, values: np.ndarray) -> np.ndarray:
        """1 + position in the list of each id, 0 for void. Raises `ValueError` for an id that is not listed."""
        positions = look_up(values, self.ids)
        unlisted = (positions < 0) & (values != VOID) & (values != 0)
        if unlisted.any():
            raise ValueError(f"{self.what}: the map has id {values[unlisted.argmax()]}, which is not in segments_info")
        return 1 + positions


def _overlaps(true: _Segments, predicted: _Segments) -> np.ndarray:
    """Number of common pixels of every pair, int64 [1 + T, 1 + P].

    Maps are piecewise constant: ids are looked up once per run of equal pixels, and the run counts with its length.
    """
    t, p = true.map.ravel(), predicted.map.ravel()  # [H · W]
    change = np.empty(t.shape, bool)
    change[:1] = True
    np.not_equal(t[1:], t[:-1], out=change[1:])
    change[1:] |= p[1:] != p[:-1]
    start = np.flatnonzero(change)  # [runs]
    length = np.diff(start, append=t.size)
    columns = 1 + len(predicted.ids)
    code = true.index(t[start]) * columns + predicted.index(p[start])
    counts = np.bincount(code, weights=length, minlength=(1 + len(true.ids)) * columns)
    return counts.astype(np.int64).reshape(-1, columns)
