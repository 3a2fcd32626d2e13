"""The data sets of the recipes, as far as a run's length depends on them."""

from dataclasses import dataclass
from math import ceil

DEVICES = 4  # the authors' number of GPUs; images are dealt to them before batches are cut
COCO_PANOPTIC_IMAGES = 16 * 7391  # inferred


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """What a recipe needs to know of its data set's training split."""

    title: str
    published: int
    "Images of the training split."
    images: int
    "Those of them that are trained on: images without a target are left out."
    inferred: bool
    "Whether `images` is only known through the steps per epoch that the authors' numbers imply (right to within 16)."
    num_labels: int
    terms: str
    "Terms of use of the data."
    annealing_images: int | None = None
    "Images the authors' annealing steps were counted with, where not these: COCO instance took over panoptic's."


_COCO_TERMS = "annotations CC BY 4.0; the images belong to their Flickr authors"
_ADE20K = {"published": 20_210, "images": 16 * 1262, "inferred": True, "num_labels": 150,
           "terms": "research and education only, see the ADE20K terms"}  # fmt: skip
TRAINING_SETS: dict[tuple[str, str], TrainingSet] = {
    ("coco", "panoptic"): TrainingSet(
        title="COCO panoptic 2017", published=118_287, images=COCO_PANOPTIC_IMAGES, inferred=True, num_labels=133,
        terms=_COCO_TERMS,
    ),
    ("coco", "instance"): TrainingSet(
        title="COCO instance 2017", published=118_287, images=117_266, inferred=False, num_labels=80,
        terms=_COCO_TERMS, annealing_images=COCO_PANOPTIC_IMAGES,
    ),
    ("ade20k", "panoptic"): TrainingSet(title="ADE20K panoptic", **_ADE20K),
    ("ade20k", "semantic"): TrainingSet(title="ADE20K semantic", **_ADE20K),
    ("cityscapes", "semantic"): TrainingSet(
        title="Cityscapes", published=2_975, images=2_975, inferred=False, num_labels=19,
        terms="non-commercial, see the Cityscapes terms",
    ),
}  # fmt: skip


def steps_per_epoch(images: int, batch_size: int = 16, devices: int = DEVICES) -> int:
    """Optimizer steps of one epoch: images dealt evenly to `devices`, each dropping its last incomplete batch."""
    return ceil(images / devices) // (batch_size // devices)
