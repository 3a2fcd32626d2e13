"""COCO: panoptic (json + png) and instance (json with polygons or RLE), official archives, folders and own exports.

Official: `{train,val}2017.zip`, `annotations_trainval2017.zip`, `panoptic_annotations_trainval2017.zip` unpacked (its
pngs are a zip inside it), or all of them extracted. Own: json anywhere below the folder, its images anywhere below it
too; Roboflow's `{train,valid,test}/_annotations.coco.json`. Labels are the json's categories in ascending id order,
which for COCO are the authors' 0-79 things, 80-132 stuff.

The user gives the folder only: the annotation file is recognized by its name or its contents, an image is looked for
beside the json, in a folder of the split, then anywhere, and panoptic pngs by COCO's convention.
"""

from pathlib import Path, PurePosixPath

from transformers.utils import logging

from ...configuration.labels import LabelSpace, label_space
from .files import IMAGE_SUFFIXES, SPLIT_NAMES, Tree, mentioned_splits, mentions, naming, safe_name
from .folders import has_label_images
from .polygons import check_shape
from .rows import Problems, ReadOptions, Rows, is_id, is_number, label_of, member, segment_entry

BACKGROUND = "background"
KINDS = {
    "panoptic": ("panoptic",),
    "instance": ("instance", "panoptic"),
    "semantic": ("panoptic", "instance"),
}
"""Task → the kinds of annotations that serve it, the best first."""
OFFICIAL_NAMES = ("instances_", "panoptic_train", "panoptic_val", "captions_", "person_keypoints_", "image_info_")

logger = logging.get_logger(__name__)


def is_coco(tree: Tree, task: str) -> bool:
    """For semantic data a json decides, unless there are label images; another task's is COCO's if it is no other's."""
    if task != "semantic":
        return True
    names = [name for name in tree.names if name.endswith(".json") and PurePosixPath(name).name != "classes.json"]
    if any(PurePosixPath(name).name.startswith("panoptic_") for name in names):
        return True
    annotated = any(is_kind(tree, name, kind) for name in names for kind in ("panoptic", "instance"))
    return annotated and not has_label_images(tree)


def coco_splits(path: Path, task: str) -> list[str]:
    """The splits that the names of the task's annotation files mention."""
    names = [(tree, name) for tree in _search_trees(path, "val") for name in tree.names if name.endswith(".json")]
    named = [(tree, name) for tree, name in names if mentioned_splits([name])]
    return mentioned_splits([name for tree, name in named if any(is_kind(tree, name, kind) for kind in KINDS[task])])


def has_annotations(path: Path, task: str) -> bool:
    """Whether there is a json of panoptic annotations, or of instances, for the task of that name."""
    names = ((tree, name) for tree in _search_trees(path, "val") for name in tree.names if name.endswith(".json"))
    return task in ("panoptic", "instance") and any(is_kind(tree, name, task) for tree, name in names)


def read_coco(path: Path, task: str, split: str, options: ReadOptions) -> tuple[Rows, LabelSpace]:
    """Rows and label space of one split."""
    trees = _search_trees(path, split)
    kind, tree, name = _annotation_file(trees, task, split, path)
    rows = Rows(f"{tree}/{name}", task if kind == task else f"{kind}_as_{task}")
    data = tree.json(name)
    with naming(rows.source):
        annotations, categories = member(data, "annotations"), member(data, "categories")
        own, left_out = _own_classes(categories, annotations, kind, task, rows.source)
        images = _images(member(data, "images"), rows)
    space = options.match(own, path)
    if kind == "panoptic":
        segments, pngs = panoptic_segments(annotations, images, space, left_out, _png_tree(tree, name), rows)
    else:
        segments, pngs = instance_segments(annotations, images, space, rows, options.crowds_as_instances), {}
    find_image = _Finder(trees, split, name, kind)
    for key in _order(images):
        file_name = images[key]["file_name"]
        with rows.problems.at(f"{rows.source}: image {key}"):
            location = find_image(file_name)
            if segments[key] or options.keep_empty:
                rows.add(key, file_name, location, pngs.get(key, ""), "", segments[key], _size(images[key]))
    return rows, space


# --- annotations ------------------------------------------------------------------------------------------------------


def panoptic_segments(
    annotations: list[dict], images: dict, space: LabelSpace, left_out: tuple[int, ...], pngs: Tree, rows: Rows
) -> tuple[dict, dict]:
    """Image id → segments, by id, and image id → location of the png.

    images: image id → entry of the json. left_out: categories whose segments are none.
    """
    segments: dict = {key: [] for key in images}
    locations: dict = {}
    known = set(pngs.names)
    for entry in annotations:
        where = f"{rows.source}: annotation of image {entry.get('image_id')!r}"
        with rows.problems.at(where):
            key = _image_id(entry, images)
            if key in locations:
                raise ValueError("the image has two annotations")
            infos = member(entry, "segments_info")
            locations[key] = _png(entry, pngs, known) if infos or entry.get("file_name") else ""
            segments[key] = _segments(infos, space, left_out, where, rows.problems)
    return segments, locations


def _segments(
    infos: list[dict], space: LabelSpace, left_out: tuple[int, ...], where: str, problems: Problems
) -> list[dict]:
    """`segments_info` → a row's segments, by id."""
    segments: list[dict] = []
    seen: set[int] = set()
    for info in infos:
        with problems.at(f"{where}: segment {info.get('id')!r}"):
            number = _new_id(info, seen)
            if not 0 < number < 2**24:
                raise ValueError("its id is not in 1 … 16777215, the colors of a png")
            if info.get("category_id") not in left_out:
                segments.append(_segment(info, number, label_of(info, space)))
    return sorted(segments, key=lambda entry: entry["id"])


def instance_segments(
    annotations: list[dict], images: dict, space: LabelSpace, rows: Rows, crowds_as_instances: bool = False
) -> dict:
    """Image id → segments. images: image id → entry of the json."""
    segments: dict = {key: [] for key in images}
    seen: set[int] = set()
    skipped = 0
    for entry in annotations:
        with rows.problems.at(f"{rows.source}: annotation {entry.get('id')!r}"):
            key, number, label = _image_id(entry, images), _new_id(entry, seen), label_of(entry, space)
            shape = _without_lines(entry.get("segmentation"))
            if not shape:
                skipped += 1
                continue
            check_shape(shape, _size(images[key]))
            segment = _segment(entry, number, label, shape)
            segments[key].append(segment | {"iscrowd": 0} if crowds_as_instances else segment)
    if skipped:
        left = f"{skipped} of {len(annotations)} annotations have no mask (boxes only, or two points)"
        if skipped == len(annotations):
            raise ValueError(f"{rows.source}: {left}; instance segmentation needs polygons or RLE")
        logger.warning(f"{rows.source}: {left} and are left out")
    return segments


def _own_classes(
    categories: list[dict], annotations: list[dict], kind: str, task: str, source: str
) -> tuple[LabelSpace, tuple[int, ...]]:
    """The label space of the json's categories, ascending by id; the packaged one where it is the same. And the
    categories that the task leaves out: stuff, for instances.

    A semantic model from instance annotations learns one class more, the background, where no object is.
    """
    by_id: dict[int, dict] = {}
    seen: set[int] = set()
    for category in categories:
        if not isinstance(category.get("name"), str) or _new_id(category, seen) < 0:
            raise ValueError(f"category {category!r:.80} needs a name and an id from 0")
        if kind == "panoptic" and task != "semantic" and category.get("isthing") not in (0, 1):
            raise ValueError(f"category {category!r:.80} needs isthing: 1 for a thing, 0 for stuff")
        by_id[category["id"]] = category
    supers = [category.get("supercategory") for category in categories]
    used = {entry["category_id"] for entry in annotations if is_id(entry.get("category_id"))}
    if kind == "instance" and 0 in by_id and 0 not in used and by_id[0]["name"] in supers:
        del by_id[0]  # Roboflow's export lists the data set itself as category 0
    if kind == "instance" and task == "semantic" and BACKGROUND not in {c["name"] for c in by_id.values()}:
        by_id[max(by_id, default=0) + 1 if 0 in by_id else 0] = {"name": BACKGROUND}
    left_out = ()
    if kind == "panoptic" and task == "instance":
        left_out = tuple(i for i, category in by_id.items() if not category["isthing"])
    ids = tuple(sorted(i for i in by_id if i not in left_out))
    if not ids:
        raise ValueError(f"it has no categories for {task} segmentation")
    names = tuple(by_id[i]["name"] for i in ids)
    if task == "semantic":
        return LabelSpace(source, names, (), ids), left_out
    official = label_space(f"coco_{task}")
    if (ids, names) == (official.dataset_ids, official.names):
        return official, left_out
    stuff = [label for label, i in enumerate(ids) if task == "panoptic" and not by_id[i]["isthing"]]
    return LabelSpace(source, names, tuple(stuff), ids), left_out


def _images(entries: list[dict], rows: Rows) -> dict[int, dict]:
    images: dict[int, dict] = {}
    seen: set[int] = set()
    for entry in entries:
        with rows.problems.at(f"{rows.source}: image {entry.get('id')!r}"):
            number = _new_id(entry, seen)
            if not isinstance(entry.get("file_name"), str) or not entry["file_name"]:
                raise ValueError("it needs a file_name")
            images[number] = entry
    return images


def _png(entry: dict, pngs: Tree, known: set[str]) -> str:
    name = safe_name(entry.get("file_name") or "")
    if name not in known:
        raise ValueError(f"its png {name!r} is not below {pngs}")
    return pngs.locate(name)


def _image_id(entry: dict, images: dict) -> int | str:
    key = entry.get("image_id")
    if not isinstance(key, int | str) or key not in images:
        raise ValueError(f"there is no image with id {key!r}")
    return key


def _new_id(entry: dict, seen: set[int]) -> int:
    number = entry.get("id")
    if not is_id(number) or number in seen:
        raise ValueError(f"id {number!r} is not an integer of its own")
    seen.add(number)
    return number


def _segment(entry: dict, number: int, label: int, shape="") -> dict:
    """An annotation's entry of a row's `segments`; pixels are counted where its area is not a number."""
    area = entry.get("area")
    iscrowd = entry.get("iscrowd", 0)
    if iscrowd not in (0, 1):  # "0" would be a crowd
        raise ValueError(f"its iscrowd is {iscrowd!r}, not 0 or 1")
    return segment_entry(number, label, iscrowd, area if is_number(area) else -1.0, shape)


def _without_lines(shape):
    """A COCO `segmentation` without polygons of fewer than three points; anything false where nothing is left."""
    if isinstance(shape, list):
        return [polygon for polygon in shape if not (isinstance(polygon, list) and len(polygon) < 6)]
    return shape


def _size(image: dict) -> tuple[int, ...]:
    """(H, W) as the json says, or () where it does not."""
    size = (image.get("height"), image.get("width"))
    return size if all(is_id(side) and 0 < side < 2**31 for side in size) else ()


def _order(images: dict[int, dict]) -> list[int]:
    """Image ids in the authors' order: by the first integer in the file name, then the name."""

    def key(i: int) -> tuple[int, str]:
        name = PurePosixPath(images[i]["file_name"]).name
        digits = "".join(c if c.isdigit() else " " for c in name).split()
        return (int(digits[0]) if digits else -1, name)

    return sorted(images, key=key)


# --- files ------------------------------------------------------------------------------------------------------------


def _search_trees(path: Path, split: str) -> list[Tree]:
    """Everything to look in: the folder, then the official archives beside each other in it."""
    trees = [Tree(path)]
    if path.is_dir():
        names = ["panoptic_annotations_trainval", "annotations_trainval", *SPLIT_NAMES[split]]
        zips = [path / f"{name}2017.zip" for name in names]
        trees += [Tree(zipped) for zipped in zips if zipped.is_file()]
    return trees


def _annotation_file(trees: list[Tree], task: str, split: str, path: Path) -> tuple[str, Tree, str]:
    """The kind and the json of this task and split. A json that names no split serves both."""
    files = [(tree, name) for tree in trees for name in tree.names if name.endswith(".json")]
    for kind in KINDS[task]:
        found = [(tree, name) for tree, name in files if is_kind(tree, name, kind)]
        if found:
            break
    for word in SPLIT_NAMES[split]:
        named = [pair for pair in found if mentions(pair[1], word)]
        if len(named) > 1:
            raise ValueError(
                f"{path}: {len(named)} {task} annotation files for {split!r}: {named[0][1]}, {named[1][1]}; keep one"
            )
        if named:
            return kind, *named[0]
    neutral = [pair for pair in found if not mentioned_splits([pair[1]])]
    if len(neutral) == 1:
        return kind, *neutral[0]
    for tree, name in files:
        tree.json(name)  # one that is no JSON is the likelier reason
    have = ", ".join(name for _, name in found) or "none"
    hint = "; for data of another kind, the task is instance or semantic" if task == "panoptic" else ""
    raise ValueError(
        f"{path}: no COCO {task} annotation file for split {split!r} (annotation files of that kind: {have}){hint}"
    )


def is_kind(tree: Tree, name: str, kind: str) -> bool:
    """Whether a json is COCO's of this kind, by name where it is official, else by a look at its bytes.

    Panoptic annotations hold `segments_info`; instance ones `segmentation`. Captions and key points are neither.
    """
    stem = PurePosixPath(name).name
    if stem.startswith(OFFICIAL_NAMES):
        return stem.startswith("panoptic_" if kind == "panoptic" else "instances_")
    text = tree.read(name)
    if b'"images"' not in text or b'"annotations"' not in text:
        return False
    return (b'"segments_info"' in text) == (kind == "panoptic")


class _Finder:
    """Finds an image by the json's `file_name`: beside the json, in a folder of the split, or the only one so named."""

    def __init__(self, trees: list[Tree], split: str, json_name: str, kind: str):
        self.trees, self.split, self.folder = trees, split, PurePosixPath(json_name).parent
        pngs = PurePosixPath(json_name).stem if kind == "panoptic" else None  # their folder; they are no images
        self.by_name: dict[str, list[tuple[Tree, str]]] = {}
        for tree in trees:
            for name in tree.names:
                folder, _, file = name.rpartition("/")
                if file.lower().endswith(IMAGE_SUFFIXES) and pngs not in folder.split("/"):
                    self.by_name.setdefault(file, []).append((tree, name))

    def __call__(self, file_name: str) -> str:
        path = PurePosixPath(file_name.replace("\\", "/"))
        # of a server's path, as Label Studio writes it, the last part is looked for
        name = path.name if path.is_absolute() else safe_name(file_name)
        found = [(t, n) for t, n in self.by_name.get(PurePosixPath(name).name, ()) if f"/{n}".endswith(f"/{name}")]
        if len(found) > 1:
            beside = [(t, n) for t, n in found if n == str(self.folder / name)]
            words = SPLIT_NAMES[self.split]
            of_split = [(t, n) for t, n in found if any(mentions(f"{t.root.stem} {n}", word) for word in words)]
            found = beside or of_split or found
        if not found:
            raise ValueError(f"its file {file_name!r} is not below {self.trees[0]}")
        if len(found) > 1:
            raise ValueError(f"its file {file_name!r} is ambiguous: {found[0][1]} and {found[1][1]}")
        tree, name = found[0]
        return tree.locate(name)


def _png_tree(tree: Tree, name: str) -> Tree:
    """Where a panoptic json's pngs are: the folder or zip of the json's own name beside it (COCO's convention)."""
    stem, parent = PurePosixPath(name).stem, PurePosixPath(name).parent
    folder, zipped = str(parent / stem), str(parent / f"{stem}.zip")
    if zipped in tree.names and not any(n.startswith(f"{folder}/") for n in tree.names):
        if tree.is_archive:
            raise ValueError(f"{tree.root}: {zipped} is a zip inside a zip; unpack {tree.root} in its folder")
        inner = Tree(tree.locate(zipped))
        return inner.below(stem) if any(n.startswith(f"{stem}/") for n in inner.names) else inner
    return tree.below(folder)
