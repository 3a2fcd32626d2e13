"""Label spaces: the classes of a data set, its stuff classes, and its own ids for the labels 0 … C−1.

A *dataset id* is the id in annotation files (COCO's `category_id`, the value of an ADE20K or Cityscapes pixel). A
*label* is an index into the model's class logits. The packaged spaces follow the authors' code: dataset ids in
ascending order become labels 0, 1, …. COCO panoptic has things 0-79 and stuff 80-132.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from itertools import count

VOID = -1  # id of pixels without a segment, in maps of ids
IGNORE_INDEX = 255  # label of pixels without a class, in semantic maps
VOID_VALUES = {1: IGNORE_INDEX, 2: 65535, 3: 0xFFFFFF}  # of such pixels in label PNGs, by bytes per pixel
PACKAGED = {  # name: (file, which classes, whether the task has stuff)
    "coco_panoptic": ("coco", "all", True),
    "coco_instance": ("coco", "things", False),
    "ade20k_panoptic": ("ade20k", "all", True),
    "ade20k_semantic": ("ade20k", "all", False),
    "cityscapes_semantic": ("cityscapes", "all", False),
}


@dataclass(frozen=True)
class LabelSpace:
    """Names and dataset ids of the labels 0 … C−1.

    Args:
        names: `names[label]`.
        stuff_label_ids: labels with one segment per image, of amorphous classes.
        dataset_ids: `dataset_ids[label]`, the id in annotation files; by default the label.
        ignored_ids: ids for "unlabeled" in annotation files. All other ids are errors.
        ignore_index: label of pixels without a class; 65535 if this one is a class.
    """

    name: str
    names: tuple[str, ...]
    stuff_label_ids: tuple[int, ...] = ()
    dataset_ids: tuple[int, ...] = ()
    ignored_ids: tuple[int, ...] = ()
    ignore_index: int = IGNORE_INDEX
    dataset_id_to_label: Mapping[int, int] = field(init=False, repr=False, compare=False)
    knows_dataset_ids: bool = field(init=False, repr=False, compare=False)  # otherwise they are the labels

    def __post_init__(self):
        for name in ("names", "stuff_label_ids", "dataset_ids", "ignored_ids"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.names:
            raise ValueError(f"label space {self.name!r} has no classes; it needs at least one name")
        if 0 <= self.ignore_index < len(self.names):
            object.__setattr__(self, "ignore_index", 2**16 - 1)  # too many classes for a byte
        object.__setattr__(self, "knows_dataset_ids", len(self.dataset_ids) > 0)
        if not self.dataset_ids:
            object.__setattr__(self, "dataset_ids", tuple(range(len(self.names))))
        if len(self.dataset_ids) != len(self.names):
            raise ValueError(
                f"label space {self.name!r}: {len(self.dataset_ids)} dataset ids for {len(self.names)} names"
            )
        twice = sorted({i for i in self.dataset_ids if self.dataset_ids.count(i) > 1})
        if twice:
            raise ValueError(f"label space {self.name!r} has dataset id {twice[0]} twice")
        outside = [i for i in self.stuff_label_ids if not 0 <= i < len(self.names)]
        if outside:
            raise ValueError(f"label space {self.name!r}: stuff label {outside[0]} is not in 0 … {len(self.names) - 1}")
        object.__setattr__(self, "dataset_id_to_label", {i: label for label, i in enumerate(self.dataset_ids)})

    @property
    def num_labels(self) -> int:
        return len(self.names)

    @property
    def id2label(self) -> dict[int, str]:
        """{label: name}, for `EoMTConfig`."""
        return dict(enumerate(self.names))

    @property
    def label2id(self) -> dict[str, int]:
        return {name: label for label, name in enumerate(self.names)}

    @property
    def categories(self) -> list[dict]:
        """Categories in COCO's format: {"id" (dataset id), "name", "isthing"}."""
        return [
            {"id": int(i), "name": name, "isthing": int(label not in self.stuff_label_ids)}
            for label, (name, i) in enumerate(zip(self.names, self.dataset_ids))
        ]

    @property
    def config_fields(self) -> dict:
        """Fields of `EoMTConfig` for this label space, the inverse of `from_config`."""
        unused = count(max(*self.dataset_ids, 0) + 1)  # for classes that the data set does not have
        ids = {name: i if i >= 0 else next(unused) for name, i in zip(self.names, self.dataset_ids)}
        if not self.knows_dataset_ids or len(ids) < self.num_labels:  # repeated names are ambiguous
            ids = {}
        return {"id2label": self.id2label, "label2id": self.label2id, "dataset_ids": ids}

    @classmethod
    def from_config(cls, config, name: str = "model") -> "LabelSpace":
        """The label space of a model: `config.id2label` (0 … C−1), `stuff_label_ids` and `dataset_ids`.

        Without saved dataset ids, they are those of the data set with the same class names (`known_labels`).
        """
        names = tuple(config.id2label[label] for label in range(len(config.id2label)))
        saved, known = getattr(config, "dataset_ids", None), known_labels(config.id2label)
        ids = known.dataset_ids if known else ()
        if saved and set(names) <= set(saved):
            ids = tuple(saved[name] for name in names)
        return cls(name, names, tuple(getattr(config, "stuff_label_ids", None) or ()), ids)


@dataclass(frozen=True)
class KnownLabels:
    """A data set recognized by its class names."""

    tasks: tuple[str, ...]
    "Tasks of models with these classes, the most frequent first."
    stuff_label_ids: tuple[int, ...]
    dataset_ids: tuple[int, ...]


BY_SIZE = {  # number of classes: packaged label space, and tasks of its models, the most frequent first
    133: ("coco_panoptic", ("panoptic",)),
    80: ("coco_instance", ("instance",)),
    150: ("ade20k_panoptic", ("panoptic", "semantic")),
    19: ("cityscapes_semantic", ("semantic", "panoptic", "instance")),
}


def known_labels(id2label: Mapping | None) -> KnownLabels | None:
    """The data set with the same number of classes as this `id2label`, if three quarters of the names are equal.

    Spellings differ between sources ("bed ", "building, edifice"), so only letters and digits before a comma count.
    """
    if not isinstance(id2label, Mapping) or len(id2label) not in BY_SIZE:
        return None
    name, tasks = BY_SIZE[len(id2label)]
    dataset, which, _ = PACKAGED[name]
    classes = _classes(dataset, which)
    given = {str(label): name for label, name in id2label.items()}  # labels are strings in files
    same = sum(_plain(given.get(str(label), "")) == _plain(c["name"]) for label, c in enumerate(classes))
    if same < 0.75 * len(classes):
        return None
    stuff = tuple(label for label, c in enumerate(classes) if not c["isthing"])
    return KnownLabels(tasks, stuff, tuple(c["id"] for c in classes))


def _plain(name) -> str:
    return re.sub("[^a-z0-9]", "", re.split("[,;]", str(name).lower())[0])


@cache
def _packaged(file: str) -> dict:
    return json.loads(files(__package__).joinpath("data", f"{file}.json").read_text(encoding="utf-8"))


def _classes(file: str, which: str) -> list[dict]:
    return [c for c in _packaged(file)["classes"] if which == "all" or c["isthing"]]


@cache
def label_space(name: str) -> LabelSpace:
    """A packaged label space: coco_panoptic, coco_instance, ade20k_panoptic, ade20k_semantic, cityscapes_semantic."""
    if name not in PACKAGED:
        raise ValueError(f"there is no label space {name!r}; choose from {', '.join(PACKAGED)}")
    file, which, with_stuff = PACKAGED[name]
    classes = _classes(file, which)
    return LabelSpace(
        name=name,
        names=tuple(c["name"] for c in classes),
        stuff_label_ids=tuple(label for label, c in enumerate(classes) if with_stuff and not c["isthing"]),
        dataset_ids=tuple(c["id"] for c in classes),
        ignored_ids=tuple(_packaged(file)["ignored_ids"]),
    )
