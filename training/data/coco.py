"""COCO panoptic (JSON and PNGs) and instance (JSON with polygons or RLE): official archives, folders, custom exports.

Official: `{train,val}2017.zip`, `annotations_trainval2017.zip`, and `panoptic_annotations_trainval2017.zip` unpacked
(its PNGs are a zip inside it), or all of them extracted. Custom: JSON files and images anywhere below a folder, such as
Roboflow's `{train,valid,test}/_annotations.coco.json`. Labels are the categories of the JSON file in ascending id
order: the authors' 0-79 things and 80-132 stuff for COCO.

Users give the folder only. Annotation files are recognized by name or contents. Images are searched beside the JSON
file, in folders of the split, then anywhere. Panoptic PNGs follow COCO's convention.
"""

from collections.abc import Iterator
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
"""{task: usable kinds of annotations, in order of preference}"""
OFFICIAL_NAMES = ("instances_", "panoptic_train", "panoptic_val", "captions_", "person_keypoints_", "image_info_")

logger = logging.get_logger(__name__)


def is_coco(tree: Tree, task: str) -> bool:
    """Whether there are panoptic JSON files, or instance ones and no label images. Other tasks fall back to COCO."""
    if task != "semantic":
        return True
    names = [name for name in tree.names if name.endswith(".json") and PurePosixPath(name).name != "classes.json"]
    if any(PurePosixPath(name).name.startswith("panoptic_") for name in names):
        return True
    annotated = any(is_kind(tree, name, kind) for name in names for kind in ("panoptic", "instance"))
    return annotated and not has_label_images(tree)


def coco_splits(path: Path, task: str) -> list[str]:
    """The splits in the names of the task's annotation files."""
    named = [(tree, name) for tree, name in _json_files(_search_trees(path, "val")) if mentioned_splits([name])]
    return mentioned_splits([name for tree, name in named if any(is_kind(tree, name, kind) for kind in KINDS[task])])


def has_annotations(path: Path, task: str) -> bool:
    """Whether there are annotations made for this task: panoptic or instance."""
    if task == "semantic":
        return False
    return any(is_kind(tree, name, task) for tree, name in _json_files(_search_trees(path, "val")))


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
                png, size = pngs.get(key, ""), _size(images[key])
                rows.add(key, file_name, location, png, segments=segments[key], size=size)
    return rows, space


# --- annotations ------------------------------------------------------------------------------------------------------


def panoptic_segments(
    annotations: list[dict], images: dict, space: LabelSpace, left_out: tuple[int, ...], pngs: Tree, rows: Rows
) -> tuple[dict, dict]:
    """{image id: segments} of all images, and {image id: location of the PNG} of annotated ones.

    `images` is {image id: entry of the JSON file}. Segments of the categories `left_out` are ignored. Malformed
    annotations are added to `rows.problems`.
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
    """The row's segments of `segments_info`, sorted by id."""
    segments: list[dict] = []
    seen: set[int] = set()
    for info in infos:
        with problems.at(f"{where}: segment {info.get('id')!r}"):
            number = _new_id(info, seen)
            if not 0 < number < 2**24:
                raise ValueError("its id is not in 1 … 16777215, the colors of a PNG")
            if info.get("category_id") not in left_out:
                segments.append(_segment(info, number, label_of(info, space)))
    return sorted(segments, key=lambda entry: entry["id"])


def instance_segments(
    annotations: list[dict], images: dict, space: LabelSpace, rows: Rows, crowds_as_instances: bool = False
) -> dict:
    """{image id: segments} of instance annotations, with arguments as in `panoptic_segments`."""
    segments: dict = {key: [] for key in images}
    seen: set[int] = set()
    skipped = 0
    for entry in annotations:
        with rows.problems.at(f"{rows.source}: annotation {entry.get('id')!r}"):
            key = _image_id(entry, images)
            number = _new_id(entry, seen)
            label = label_of(entry, space)
            shape = _without_lines(entry.get("segmentation"))
            if not shape:
                skipped += 1
                continue
            check_shape(shape, _size(images[key]))
            segment = _segment(entry, number, label, shape)
            if crowds_as_instances:
                segment["iscrowd"] = 0
            segments[key].append(segment)
    if skipped:
        without_mask = f"{skipped} of {len(annotations)} annotations have no mask (boxes only, or two points)"
        if skipped == len(annotations):
            raise ValueError(f"{rows.source}: {without_mask}; instance segmentation needs polygons or RLE")
        logger.warning(f"{rows.source}: {without_mask} and are left out")
    return segments


def _own_classes(
    categories: list[dict], annotations: list[dict], kind: str, task: str, source: str
) -> tuple[LabelSpace, tuple[int, ...]]:
    """The label space of the categories, ascending by id, and the ids that the task leaves out (stuff for instances).

    For panoptic and instance segmentation it is the packaged COCO label space if the categories are the same. Semantic
    segmentation from instance annotations has one more class: the background.
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
        del by_id[0]  # Roboflow exports the data set itself as category 0
    if kind == "instance" and task == "semantic" and BACKGROUND not in {c["name"] for c in by_id.values()}:
        unused_id = max(by_id) + 1 if 0 in by_id else 0
        by_id[unused_id] = {"name": BACKGROUND}
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
    if task == "instance":
        return LabelSpace(source, names, (), ids), left_out
    stuff = tuple(label for label, i in enumerate(ids) if not by_id[i]["isthing"])
    return LabelSpace(source, names, stuff, ids), left_out


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
        raise ValueError(f"its PNG {name!r} is not below {pngs}")
    return pngs.locate(name)


def _image_id(entry: dict, images: dict) -> int | str:
    key = entry.get("image_id")
    if not isinstance(key, int | str) or key not in images:
        raise ValueError(f"there is no image with id {key!r}")
    return key


def _new_id(entry: dict, seen: set[int]) -> int:
    number = entry.get("id")
    if not is_id(number) or number in seen:
        raise ValueError(f"id {number!r} is repeated or not an integer")
    seen.add(number)
    return number


def _segment(entry: dict, number: int, label: int, shape="") -> dict:
    """The row's segment of an annotation. Its area is that of the annotation, or −1 if that is not a number."""
    area = entry.get("area")
    iscrowd = entry.get("iscrowd", 0)
    if iscrowd not in (0, 1):  # the string "0" would count as a crowd
        raise ValueError(f"its iscrowd is {iscrowd!r}, not 0 or 1")
    return segment_entry(number, label, iscrowd, area if is_number(area) else -1.0, shape)


def _without_lines(shape):
    """A COCO `segmentation` without polygons of fewer than three points. The result is falsy if nothing is left."""
    if isinstance(shape, list):
        return [polygon for polygon in shape if not (isinstance(polygon, list) and len(polygon) < 6)]
    return shape


def _size(image: dict) -> tuple[int, ...]:
    """(H, W) in the JSON file, or ()."""
    size = (image.get("height"), image.get("width"))
    return size if all(is_id(side) and 0 < side < 2**31 for side in size) else ()


def _order(images: dict[int, dict]) -> list[int]:
    """Image ids in the authors' order: by the first integer in the file name, then by file name."""

    def key(i: int) -> tuple[int, str]:
        name = PurePosixPath(images[i]["file_name"]).name
        digits = "".join(c if c.isdecimal() else " " for c in name).split()
        return (int(digits[0]) if digits else -1, name)

    return sorted(images, key=key)


# --- files ------------------------------------------------------------------------------------------------------------


def _search_trees(path: Path, split: str) -> list[Tree]:
    """The folder and the official archives in it."""
    trees = [Tree(path)]
    if path.is_dir():
        names = ["panoptic_annotations_trainval", "annotations_trainval", *SPLIT_NAMES[split]]
        zips = [path / f"{name}2017.zip" for name in names]
        trees += [Tree(zipped) for zipped in zips if zipped.is_file()]
    return trees


def _json_files(trees: list[Tree]) -> Iterator[tuple[Tree, str]]:
    """Lazy: archives after the wanted file stay closed."""
    return ((tree, name) for tree in trees for name in tree.names if name.endswith(".json"))


def _annotation_file(trees: list[Tree], task: str, split: str, path: Path) -> tuple[str, Tree, str]:
    """Kind and JSON file of the annotations of a task and split. A file without a split in its name serves all."""
    files = list(_json_files(trees))
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
        tree.json(name)  # report a malformed file first
    have = ", ".join(name for _, name in found) or "none"
    hint = "; other kinds of data need task instance or semantic" if task == "panoptic" else ""
    raise ValueError(
        f"{path}: no COCO {task} annotation file for split {split!r} (annotation files of that kind: {have}){hint}"
    )


def is_kind(tree: Tree, name: str, kind: str) -> bool:
    """Whether a JSON file holds COCO annotations of this kind, by its official name or its contents.

    Panoptic annotations have `segments_info`, instance annotations do not. Official captions and keypoints are neither.
    """
    file = PurePosixPath(name).name
    if file.startswith(OFFICIAL_NAMES):
        return file.startswith("panoptic_" if kind == "panoptic" else "instances_")
    text = tree.read(name)
    if b'"images"' not in text or b'"annotations"' not in text:
        return False
    return (b'"segments_info"' in text) == (kind == "panoptic")


class _Finder:
    """Finds an image by `file_name`: beside the JSON file, in a folder of the split, or the only one of that name."""

    def __init__(self, trees: list[Tree], split: str, json_name: str, kind: str):
        self.trees, self.split, self.folder = trees, split, PurePosixPath(json_name).parent
        pngs = PurePosixPath(json_name).stem if kind == "panoptic" else None  # folder of the label PNGs
        self.by_name: dict[str, list[tuple[Tree, str]]] = {}
        for tree in trees:
            for name in tree.names:
                folder, _, file = name.rpartition("/")
                if file.lower().endswith(IMAGE_SUFFIXES) and pngs not in folder.split("/"):
                    self.by_name.setdefault(file, []).append((tree, name))

    def __call__(self, file_name: str) -> str:
        path = PurePosixPath(file_name.replace("\\", "/"))
        # Label Studio writes absolute paths of its server: their last part is the name
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
    """The PNGs of a panoptic JSON file: the folder or zip of the same name beside it (COCO's convention)."""
    stem, parent = PurePosixPath(name).stem, PurePosixPath(name).parent
    folder, zipped = str(parent / stem), str(parent / f"{stem}.zip")
    if zipped in tree.names and not any(n.startswith(f"{folder}/") for n in tree.names):
        if tree.is_archive:
            raise ValueError(f"{tree.root}: {zipped} is a zip inside a zip; unpack {tree.root} in its folder")
        inner = Tree(tree.locate(zipped))
        return inner.below(stem) if any(n.startswith(f"{stem}/") for n in inner.names) else inner
    return tree.below(folder)
