"""What `eomt predict` and `eomt evaluate --save-predictions` say about their own files (`images.json`), and how it fits
a data set: images are matched by file name, since photos alone have no ids, and categories by name."""

import re
from collections import defaultdict
from dataclasses import replace
from pathlib import PurePosixPath

from ...configuration.labels import LabelSpace
from .files import Tree
from .rows import is_id

_UNNAMED = re.compile(r"(class|LABEL)_\d+")  # classes that nobody has named


class PredictionIndex:
    """`images.json` of a folder of predictions: {"images": [{"id", "file_name"}], "categories": [{"id", "name"}]}."""

    def __init__(self, tree: Tree, name: str = "images.json"):
        self.source = f"{tree}/{name}"
        data = tree.json(name)
        lists = [data.get(key) if isinstance(data, dict) else None for key in ("images", "categories")]
        if not all(isinstance(entries, list) and all(isinstance(e, dict) for e in entries) for entries in lists):
            raise ValueError(f"{self.source}: it needs the lists 'images' and 'categories'; predict again")
        self.images, categories = lists
        if any(not isinstance(e.get("id"), int | str) or not isinstance(e.get("file_name"), str) for e in self.images):
            raise ValueError(f"{self.source}: every image needs an id and a file_name; predict again")
        if any(not is_id(e.get("id")) or not isinstance(e.get("name"), str) for e in categories):
            raise ValueError(f"{self.source}: every category needs an integer id and a name; predict again")
        self.categories = {e["id"]: e["name"] for e in categories}
        self.things = {e["id"]: bool(e.get("isthing", 1)) for e in categories}

    @classmethod
    def find(cls, tree: Tree) -> "PredictionIndex | None":
        return cls(tree) if "images.json" in tree.names else None

    def image_ids(self, dataset) -> dict:
        """Image id of the predictions → the data set's."""
        ours = defaultdict(list)
        for image_id, file in zip(dataset["image_id"][:], dataset["file_name"][:]):
            ours[PurePosixPath(file).name].append((PurePosixPath(file).parts, image_id))
        ids: dict = {}
        for entry in self.images:
            file = PurePosixPath(entry["file_name"].replace("\\", "/"))
            shared = sorted(((_shared_end(parts, file.parts), i) for parts, i in ours[file.name]), key=lambda s: s[0])
            shared = [s for s in shared if s[0]]
            if not shared:
                raise ValueError(f"{self.source}: the data set has no image {entry['file_name']!r}")
            if len(shared) > 1 and shared[-1][0] == shared[-2][0]:
                raise ValueError(f"{self.source}: the data set has several images {entry['file_name']!r}")
            ids[entry["id"]] = shared[-1][1]
        if len(set(ids.values())) < len(self.images):
            raise ValueError(f"{self.source}: two of its images are the same image of the data set")
        return ids

    def space(self, space: LabelSpace) -> LabelSpace:
        """The data set's label space with the ids that these predictions have for its classes.

        Classes are matched by name; where one of the two has never named its classes, by their ids, which must then
        be the same. `ValueError` where neither fits.
        """
        names = set(self.categories.values())
        if len(names) == len(self.categories) and names <= set(space.names):
            id_of = {name: i for i, name in self.categories.items()}
            absent = iter(range(-1, -1 - space.num_labels, -1))
            ids = tuple(id_of[name] if name in id_of else next(absent) for name in space.names)
            return replace(space, dataset_ids=ids, ignored_ids=())
        unnamed = is_unnamed(space.names) or is_unnamed(names)
        if unnamed and set(self.categories) == set(space.dataset_ids):
            return replace(space, ignored_ids=())
        if unnamed:
            raise ValueError(
                f"{self.source}: the predictions have the category ids {_some(self.categories)}, the data set has "
                f"{_some(space.dataset_ids)}; name its classes (classes.txt) as the model's are"
            )
        stranger = min(names - set(space.names))
        raise ValueError(f"{self.source}: the data set has no class {stranger!r}; it has {_some(space.names)}")

    def named(self, space: LabelSpace) -> LabelSpace:
        """The data set's label space, with these predictions' class names where it has none of its own."""
        if is_unnamed(space.names) and set(self.categories) == set(space.dataset_ids):
            return replace(space, names=tuple(self.categories[i] for i in space.dataset_ids))
        return space


def is_unnamed(names) -> bool:
    return all(_UNNAMED.fullmatch(name) for name in names)


def _shared_end(ours: tuple[str, ...], theirs: tuple[str, ...]) -> int:
    """How many last parts two paths share, 0 unless the shorter one is the longer one's end."""
    shorter = min(len(ours), len(theirs))
    return shorter if ours[-shorter:] == theirs[-shorter:] else 0


def _some(values) -> str:
    values = sorted(values)
    return ", ".join(map(str, values)) if len(values) < 7 else f"{values[0]}, {values[1]}, … {values[-1]}"
