"""BRAVO's figures (the paper's Tables 8 and E): mean IoU of what is known, AUPRC of finding what is not.

H, W image · 19 classes of Cityscapes
"""

from collections.abc import Callable, Iterable, Iterator
from statistics import harmonic_mean, mean

import numpy as np
from tqdm.auto import tqdm

from ..configuration.labels import label_space
from ..inference.segment import segment
from .data.bravo import SUBSETS, Bravo
from .evaluation import Share, sample_image
from .metrics import OutOfDistribution
from .processes import gather, rank, world_size

CITYSCAPES = label_space("cityscapes_semantic")
_MEASURED = {subset.name: subset for subset in SUBSETS}


def train_ids(names: Iterable[str], model: str) -> np.ndarray:
    """A model's class names → the train id of each of its labels, (19,).

    Raises:
        ValueError: when they are not Cityscapes' 19 classes.
    """
    names = list(names)
    if sorted(names) != sorted(CITYSCAPES.names):
        stranger = next((name for name in names if name not in CITYSCAPES.names), names[0])
        raise ValueError(
            f"{model} has {len(names)} classes, {stranger!r} among them; BRAVO is for models of Cityscapes' 19 classes"
        )
    return np.array([CITYSCAPES.label2id[name] for name in names], np.uint8)


def predict_images(
    model, processor, dataset: Bravo, *, batch_size: int = 1, num_workers: int = 0
) -> Iterator[tuple[dict, dict]]:
    """(sample, {"segmentation" (H, W) train ids, "confidence" (H, W)}) of this process's images."""
    of_label = train_ids([model.config.id2label[i] for i in range(model.config.num_labels)], "the model")
    share = Share(dataset, rank(), world_size())
    options = {"batch_size": batch_size, "num_workers": num_workers, "read": sample_image}
    for result in segment(model, processor, share, task="semantic", confidence=True, **options):
        sample, counts = result.item
        if counts:
            segmentation = of_label[np.asarray(result.prediction["segmentation"])]
            yield sample, {"segmentation": segmentation, "confidence": result.prediction["confidence"]}


def score(
    pairs: Iterable[tuple[dict, dict]],
    subsets: Iterable[str],
    total: int | None = None,
    on_image: Callable[[dict, dict], None] | None = None,
) -> dict:
    """(sample, prediction) pairs → {"subsets": {name: {"mean_iou", "auprc", "images", "per_category_iou"}}, and over
    them "mean_iou" and "auprc": {"arithmetic", "harmonic"}}; fractions 0 … 1, summed over the processes.

    The mean IoU is over the eight subsets with classes, the AUPRC over the two with objects of none, as in the paper,
    which does not say how it averages: both ways are given. `None` where a subset has no such figure.
    """
    metrics = {name: OutOfDistribution(num_labels=CITYSCAPES.num_labels) for name in subsets}
    images = dict.fromkeys(metrics, 0)
    for sample, prediction in tqdm(pairs, "BRAVO", total, leave=False, disable=rank() != 0):
        reference = sample["reference"] | {"file_name": sample["file_name"]}
        metrics[sample["subset"]].add(prediction=prediction, reference=reference)
        images[sample["subset"]] += 1
        if on_image is not None:
            on_image(sample, prediction)
    found = {}
    for name, metric in metrics.items():
        result, semantic = metric.compute(), _MEASURED[name].semantic
        found[name] = {
            "mean_iou": result["mean_iou"] if semantic else None,
            "auprc": None if np.isnan(result["auprc"]) else result["auprc"],
            "images": sum(gather(images[name])),
            "per_category_iou": result["per_category_iou"] if semantic else None,
        }
    objects = [name for name in found if _MEASURED[name].objects]
    return {
        "subsets": found,
        "mean_iou": means([row["mean_iou"] for row in found.values()]),
        "auprc": means([found[name]["auprc"] for name in objects]),
    }


def means(values: Iterable[float | None]) -> dict[str, float | None]:
    """Arithmetic and harmonic mean of those that there are."""
    values = [value for value in values if value is not None]
    if not values:
        return {"arithmetic": None, "harmonic": None}
    return {"arithmetic": mean(values), "harmonic": harmonic_mean(values)}
