"""The paper's training runs as named recipes (§4.1, App. A; numbers from the authors' configurations), their data sets
and their reported results.

    eomt train --recipe coco_panoptic_eomt_large_640 --data PATH

Times are optimizer steps, which follow from the data set and the batch size. Sizes are pixels, rates per step.
"""

import csv
from dataclasses import dataclass
from fractions import Fraction
from importlib.resources import files
from math import ceil

from .families import FAMILIES, find_backbone
from .labels import label_space
from .tasks import TASK_ROWS

DEVICES = 4  # the authors' GPUs; images are distributed to them before batching
COCO_PANOPTIC_IMAGES = 16 * 7391  # inferred


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """Training split of a data set."""

    labels: str
    "Name of the label space."
    title: str
    published: int
    "Images of the training split."
    images: int
    "Images used for training, all with targets."
    inferred: bool
    "Whether `images` is inferred from the authors' steps per epoch (exact to within 16)."
    terms: str
    "Terms of use of the data."
    annealing_images: int | None = None
    "Number of images in the authors' annealing steps, if not `images`: COCO instance has the steps of panoptic."

    @property
    def num_labels(self) -> int:
        return label_space(self.labels).num_labels


_COCO = {"published": 118_287, "terms": "annotations CC BY 4.0; the images belong to their Flickr authors"}
_ADE20K = {"published": 20_210, "images": 16 * 1262, "inferred": True,
           "terms": "research and education only, see the ADE20K terms"}  # fmt: skip
_CITYSCAPES = {"published": 2_975, "images": 2_975, "inferred": False,
               "terms": "non-commercial, see the Cityscapes terms"}  # fmt: skip
_ALL_SETS = [
    TrainingSet(
        labels="coco_panoptic", title="COCO panoptic 2017", images=COCO_PANOPTIC_IMAGES, inferred=True, **_COCO
    ),
    TrainingSet(
        labels="coco_instance",
        title="COCO instance 2017",
        images=117_266,
        inferred=False,
        annealing_images=COCO_PANOPTIC_IMAGES,
        **_COCO,
    ),
    TrainingSet(labels="ade20k_panoptic", title="ADE20K panoptic", **_ADE20K),
    TrainingSet(labels="ade20k_semantic", title="ADE20K semantic", **_ADE20K),
    TrainingSet(labels="cityscapes_semantic", title="Cityscapes", **_CITYSCAPES),
]
TRAINING_SETS = {tuple(row.labels.split("_")): row for row in _ALL_SETS}
"""{(data set, task): training split}."""


def steps_per_epoch(images: int, batch_size: int = 16, devices: int = DEVICES) -> int:
    """Optimizer steps per epoch. Images are distributed evenly; each device drops its last incomplete batch."""
    return ceil(images / devices) // (batch_size // devices)


def annealing_steps(total_steps: int, num_blocks: int) -> tuple[list[int], list[int]]:
    """Annealing steps (starts, ends) of the L2 = `num_blocks` masked blocks in a run of T = `total_steps`.

    start_i = T/6 + i·(T/2)/(L2−1) and end_i = start_i + T/6. T/6 is rounded first and the rest computed from it, which
    reproduces all numbers of the authors. A single block starts at 5T/12. In very short runs the phases are shorter, so
    that the last mask disappears before the last step. Below six steps nothing is masked.
    """
    if num_blocks < 1:
        raise ValueError(f"num_blocks is {num_blocks}; annealing needs at least one masked block")
    phase = max(0, min((total_steps + 3) // 6, (total_steps - 1) // 5))  # T/6, rounded half up
    gaps = max(1, num_blocks - 1)
    first = 0 if num_blocks > 1 else 0.5  # L2 = 1: the symmetric choice
    starts = [int(phase + 3 * phase * (first + i) / gaps + 0.5) for i in range(num_blocks)]
    return starts, [start + phase for start in starts]


@dataclass(frozen=True)
class Recipe:
    """A training run of the authors. Defaults are common to all runs."""

    name: str
    dataset: str
    "coco, ade20k or cityscapes."
    task: str
    "panoptic, instance or semantic."
    backbone: str
    "Name of timm with the pre-training tag."
    image_size: int
    "Side of the square training crop (pixels)."
    epochs: int
    "12 on COCO (1×), 31 on ADE20K, 107 on Cityscapes (§4.1); 24 for 2×."
    num_blocks: int
    "L2, the last blocks, which process the queries: 3 for S and B, 4 for L, 5 for g (App. A); 6 in PMT."
    num_queries: int
    "200; 100 for semantic segmentation (App. A)."
    learning_rate: float = 1e-4
    "Learning rate of the heads and the last block (§4.1)."
    llrd: float = 0.8
    "Layer-wise decay of the learning rate, a factor per block (§4.1)."
    llrd_l2_enabled: bool = True
    "Whether the rates of the last L2 blocks also decay; not in the DINOv3 recipes."
    warmup_steps: tuple[int, int] = (500, 1000)
    "Optimizer steps: heads, then backbone (PMT's is frozen)."
    poly_power: float = 0.9
    "Exponent of the decay of learning rates and mask probabilities (§4.1)."
    first_block_annealing: tuple[int, int] | None = None
    "Start and end step of the earliest masked block, if they differ from the common rule (DINOv3)."
    annealing_epochs: float | None = None
    "Epochs in the authors' annealing steps, if not `epochs`."
    initial_checkpoint: str | None = None
    "Recipe of the initial weights, without the class head (Tab. 4: ADE20K panoptic from COCO)."
    architecture: str = "eomt"
    "eomt, or pmt: a decoder on a frozen backbone (arXiv 2603.25398)."
    batch_size: int = 16
    "Images per optimizer step, over all devices."
    weight_decay: float = 0.05
    "For every parameter."
    max_grad_norm: float = 0.01
    adam_betas: tuple[float, float] = (0.9, 0.999)
    adam_epsilon: float = 1e-8
    precision: str = "fp16"
    "Autocast with loss scaling."
    scale_range: tuple[float, float] = (0.1, 2.0)
    "Scale jitter of the longer side, relative to the crop."
    color_jitter: bool = False
    evaluation_epochs: int = 1
    "Epochs between evaluations."
    checkpoint: str | None = None
    "The authors' trained weights on the hub; for DINOv3 differences from the backbone (see `is_delta`)."

    @property
    def training_set(self) -> TrainingSet:
        return TRAINING_SETS[self.dataset, self.task]

    @property
    def is_delta(self) -> bool:
        """Whether `checkpoint` holds differences from the backbone. PMT's hold the decoder."""
        return self.architecture == "eomt" and FAMILIES[find_backbone(self.backbone).family].published_as_deltas

    @property
    def hub_model(self) -> str | None:
        """Hub name of the authors' trained weights in transformers' format."""
        if not (self.checkpoint and self.is_delta):
            return self.checkpoint
        dataset = {"ade20k": "ade"}.get(self.dataset, self.dataset)
        size = find_backbone(self.backbone).size
        return f"tue-mps/eomt-dinov3-{dataset}-{self.task}-{size}-{self.image_size}"

    @property
    def num_labels(self) -> int:
        return self.training_set.num_labels

    @property
    def metric(self) -> str:
        return TASK_ROWS[self.task].metric

    @property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(self.training_set.images, self.batch_size)

    @property
    def total_steps(self) -> int:
        """Optimizer steps T of the run."""
        return self.epochs * self.steps_per_epoch

    @property
    def reported(self) -> "Reported":
        """The authors' result for this run, with its cost if reported."""
        return reported_for(self.name)

    @property
    def command(self) -> str:
        return f"eomt train --recipe {self.name} --data PATH"

    def annealing_steps(self, total_steps: int | None = None) -> tuple[list[int], list[int]]:
        """Annealing steps (starts, ends) of the masked blocks in a run of `total_steps` (the authors' by default)."""
        stretch = Fraction(total_steps or self.total_steps, self.total_steps)
        images = self.training_set.annealing_images or self.training_set.images
        counted = steps_per_epoch(images, self.batch_size) * Fraction(self.annealing_epochs or self.epochs)
        total = round(counted * stretch)
        starts, ends = annealing_steps(total, self.num_blocks)
        if self.architecture == "pmt":  # the same rule with other rounding
            gaps = max(1, self.num_blocks - 1)
            starts = [total * (gaps + 3 * i) // (6 * gaps) for i in range(self.num_blocks)]
            ends = [total * (2 * gaps + 3 * i) // (6 * gaps) for i in range(self.num_blocks)]
        if self.first_block_annealing:
            starts[0], ends[0] = (round(step * stretch) for step in self.first_block_annealing)
        return starts, ends


DINOV2 = "vit_{}_patch14_reg4_dinov2.lvd142m"
DINOV3 = "vit_{}_patch16_dinov3.lvd1689m"
_EPOCHS = {"coco": 12, "ade20k": 31, "cityscapes": 107}
_V3 = {"learning_rate": 2e-4, "llrd_l2_enabled": False, "warmup_steps": (2000, 3000)}
_V3_FIRST = {**_V3, "first_block_annealing": (0, 3000)}


def _recipe(dataset: str, task: str, size: str, image_size: int, suffix: str = "", **values) -> Recipe:
    """A configuration of the authors, with defaults from data set, task and size."""
    name = f"{dataset}_{task}_{values.get('architecture', 'eomt')}_{size}_{image_size}{suffix}"
    backbone = values.get("backbone", DINOV2.format(size))
    common = {
        "backbone": backbone,
        "epochs": _EPOCHS[dataset] * (2 if "_2x" in suffix else 1),
        "num_blocks": find_backbone(backbone).num_blocks,
        "num_queries": TASK_ROWS[task].num_queries,
        "scale_range": TASK_ROWS[task].scale_range,
        "color_jitter": dataset != "coco",
        "evaluation_epochs": 2 if task == "instance" else 1,
        "checkpoint": f"tue-mps/{name}",
    }
    if (dataset, task) == ("ade20k", "panoptic"):
        common["initial_checkpoint"] = name.replace("ade20k", "coco")
    return Recipe(name, dataset, task, image_size=image_size, **{**common, **values})


def _pmt(dataset: str, task: str, size: str, image_size: int, epochs: int = 12) -> Recipe:
    """A configuration of PMT's authors: warm-up and cosine decay, one rate for every parameter of the decoder."""
    return _recipe(
        dataset, task, size, image_size, "_dinov3", architecture="pmt", backbone=DINOV3.format(size), epochs=epochs,
        num_blocks=6, learning_rate=2e-4, llrd=1.0, warmup_steps=(6000, 0), first_block_annealing=(0, 3000),
    )  # fmt: skip


_DINOV3_L = {"backbone": DINOV3.format("large"), **_V3_FIRST}
_ALL = [
    *(_recipe("coco", "panoptic", size, 640, checkpoint=None) for size in ("small", "base")),
    *(_recipe("coco", "panoptic", size, 640, "_2x") for size in ("small", "base")),
    *(_recipe("coco", "panoptic", size, side) for size in ("large", "giant") for side in (640, 1280)),
    *(_recipe("coco", "instance", "large", side) for side in (640, 1280)),
    *(_recipe("ade20k", "panoptic", size, side) for size in ("large", "giant") for side in (640, 1280)),
    _recipe("ade20k", "semantic", "large", 512),
    _recipe("cityscapes", "semantic", "large", 1024),
    # DINOv3. The authors' two 1280 configurations lack `img_size` and would run at 640; these have it.
    *(
        _recipe("coco", "panoptic", size, 640, "_2x_dinov3", backbone=DINOV3.format(size),
                checkpoint=f"tue-mps/coco_panoptic_eomt_{size}_640_dinov3", **_V3_FIRST)
        for size in ("small", "base")
    ),
    *(_recipe("coco", "panoptic", "large", side, "_dinov3", **_DINOV3_L) for side in (640, 1280)),
    *(
        _recipe("coco", "instance", "large", side, "_dinov3", backbone=DINOV3.format("large"), **_V3)
        for side in (640, 1280)
    ),
    # The authors' annealing steps are those of half of 31 epochs. Their lr_mult=0.1 has no effect, so with llrd=1 every
    # parameter trains at 2e-4.
    _recipe("ade20k", "semantic", "large", 512, "_dinov3", epochs=16, annealing_epochs=15.5,
            checkpoint="tue-mps/ade_semantic_eomt_large_512_dinov3",
            **{**_DINOV3_L, "llrd": 1.0, "llrd_l2_enabled": True}),
    # Table 2, trained like the DINOv2 models; the authors publish neither their configurations nor their weights.
    *(
        _recipe("coco", "panoptic", "large", 640, suffix, backbone=backbone, checkpoint=None)
        for suffix, backbone in (
            ("_eva02", "eva02_large_patch14_224.mim_m38m"),
            ("_deit3_in21k", "deit3_large_patch16_384.fb_in22k_ft_in1k"),
            ("_deit3_in1k", "deit3_large_patch16_384.fb_in1k"),
        )
    ),
    *(_pmt("coco", "panoptic", size, 640) for size in ("small", "base", "large")),
    _pmt("coco", "panoptic", "large", 1280),
    *(_pmt("coco", "instance", "large", side) for side in (640, 1280)),
    _pmt("ade20k", "semantic", "large", 512, epochs=16),
]  # fmt: skip
RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in _ALL}


def get_recipe(name: str) -> Recipe:
    if name not in RECIPES:
        raise ValueError(f"there is no recipe {name!r}; choose from {', '.join(RECIPES)}")
    return RECIPES[name]


# --- reported results ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reported:
    """A reported result, a row of data/paper.csv.

    COCO and ADE20K are val splits. FPS: H100, batch 1, mixed precision, torch.compile (§4.1). GFLOPs: fvcore, one
    FLOP per multiply-add. None for blanks in the paper.
    """

    table: str
    "Source: a table of the paper, or `model zoo` (the authors' repository; PMT: that of PMT)."
    method: str
    backbone: str
    pretraining: str
    dataset: str
    "coco, ade20k, cityscapes or bravo."
    image_size: str
    "Pixels: `640²`, or `1024×2048`."
    metric: str
    value: float
    "Percent."
    parameters: float | None = None
    "Millions."
    gflops: float | None = None
    "Per image, window crops included."
    fps: float | None = None
    "Images per second; in Table 9 at batch 32."
    recipe: str | None = None
    "Name of the recipe for this model."
    note: str = ""


def _value(text: str) -> float | str | None:
    try:
        return int(text) if text.isdecimal() else float(text)
    except ValueError:
        return text or None


def _reported(row: dict[str, str]) -> Reported:
    return Reported(**{name: _value(text) for name, text in row.items()} | {"note": row["note"]})


_TEXT = files(__package__).joinpath("data", "paper.csv").read_text(encoding="utf-8")
REPORTED: tuple[Reported, ...] = tuple(_reported(row) for row in csv.DictReader(_TEXT.splitlines()))


def reported_for(recipe: str) -> Reported | None:
    """The reported result for a recipe; if it is in two tables, from the one with more columns."""
    rows = [row for row in REPORTED if row.recipe == recipe]
    return max(rows, key=lambda row: (row.parameters is not None, row.table), default=None)
