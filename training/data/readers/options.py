"""What every reader is asked for besides path, task and split."""

from dataclasses import dataclass

from ....configuration.labels import LabelSpace


class UnknownClass(ValueError):
    """The data has a class that is not in the wanted label space; the message names it."""


def check_names(space: LabelSpace, given: LabelSpace, source: str) -> LabelSpace:
    """The wanted label space with this data set's ids: classes are matched by name, so order may differ.

    A class that the wanted space does not have is an `UnknownClass` error. The data decides which classes are stuff
    where the wanted space does not (models of plain transformers).
    """
    by_name = dict(zip(space.names, space.dataset_ids))
    missing = [name for name in by_name if name not in given.label2id]
    if missing:
        raise UnknownClass(f"{source}: its class {missing[0]!r} is not among the {given.num_labels} of {given.name!r}")
    stuff = given.stuff_label_ids or tuple(sorted(given.label2id[space.names[i]] for i in space.stuff_label_ids))
    unused = iter(range(-1, -1 - given.num_labels, -1))  # classes this data set does not have: ids it cannot contain
    ids = tuple(by_name[name] if name in by_name else next(unused) for name in given.names)
    return LabelSpace(given.name, given.names, stuff, ids, space.ignored_ids, given.ignore_index)


@dataclass(frozen=True)
class ReadOptions:
    """Wishes of the caller of `load_data`; a reader takes what its format leaves open."""

    label_space: LabelSpace | None = None
    "Classes to match the data's to, by name (a model's). None: the data's own."
    class_names: dict[int, str] | None = None
    "What pixel values are called, over any classes file (folders of label pngs)."
    ignore_ids: tuple[int, ...] = ()
    "Pixel values that mean unlabeled (folders of label pngs)."
    keep_empty: bool = True
    "Whether images without any segment are rows."
    crowds_as_instances: bool = False
    "Whether `iscrowd` is ignored (COCO instances): CVAT sets it on every mask that it exports."

    score_floor: float = 0.0
    "Predictions read as data: segments that score less are not learned."

    @property
    def known_names(self) -> dict[int, str] | None:
        """The wanted label space's pixel value → class, where it knows its data set's values."""
        space = self.label_space
        if space is None or not space.knows_dataset_ids:
            return None
        return {i: space.names[label] for i, label in space.dataset_id_to_label.items() if i >= 0} or None

    def match(self, space: LabelSpace, source) -> LabelSpace:
        """The data's label space, or the wanted one with the data's ids."""
        twice = [name for name in space.names if space.names.count(name) > 1]
        if twice:
            raise ValueError(f"{source}: two classes are called {twice[0]!r}; give each a name of its own")
        return space if self.label_space is None else check_names(space, self.label_space, str(source))
