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

from ....configuration.labels import LabelSpace, label_space
from ..files import IMAGE_SUFFIXES, SPLIT_NAMES, Tree, mentions, safe_name
from ..polygons import check_shape
from ..rows import Rows, is_id, is_number, segment
from .options import ReadOptions

BACKGROUND = "background"
KINDS = {
    "panoptic": ("panoptic",),
    "instance": ("instance", "panoptic"),
    "semantic": ("panoptic", "instance"),
}
"""Task → the kinds of annotations that serve it, the best first."""

logger = logging.get_logger(__name__)


def read_coco(path: Path, task: str, split: str, options: ReadOptions) -> tuple[Rows, LabelSpace]:
    """Rows and label space of one split."""
    trees = search_trees(path, split)
    kind, tree, name = annotation_file(trees, task, split, path)
    data, source = tree.json(name), f"{tree}/{name}"
    for key in ("images", "annotations", "categories"):
        entries = data.get(key) if isinstance(data, dict) else None
        if not isinstance(entries, list):
            raise ValueError(f"{source}: it has no list {key!r}; the COCO format needs images, annotations, categories")
        wrong = next((i for i, entry in enumerate(entries) if not isinstance(entry, dict)), None)
        if wrong is not None:
            raise ValueError(f"{source}: entry {wrong} of {key!r} is not an object")
    own, left_out = _json_space(data, kind, task, source)
    space = options.match(own, path)
    rows = Rows(source, task if kind == task else f"{kind}_as_{task}")
    images = _images(data["images"], rows, source)
    finder = Finder(
        trees, prefer=SPLIT_NAMES[split], avoid=PurePosixPath(name).stem, near=str(PurePosixPath(name).parent)
    )
    if kind == "panoptic":
        _panoptic(data, images, space, left_out, rows, finder, png_tree(tree, name), source, options.keep_empty)
    else:
        _instance(data, images, space, rows, finder, source, options.keep_empty, options.crowds_as_instances)
    return rows, space


def _json_space(data: dict, kind: str, task: str, source: str) -> tuple[LabelSpace, set[int]]:
    """The label space of the json's categories, ascending by id; the packaged one where it is the same. And the
    categories that the task leaves out: stuff, for instances.

    A semantic model from instance annotations learns one class more, the background, where no object is.
    """
    categories = {}
    for category in data["categories"]:
        if not is_id(category.get("id")) or not isinstance(category.get("name"), str):
            raise ValueError(f"{source}: category {category!r} needs an integer id and a name")
        if category["id"] < 0:
            raise ValueError(f"{source}: category id {category['id']} is negative; number categories from 0")
        if category["id"] in categories:
            raise ValueError(f"{source}: category id {category['id']} is there twice")
        categories[category["id"]] = category
        if kind == "panoptic" and task != "semantic" and category.get("isthing") not in (0, 1):
            given = "has no isthing" if "isthing" not in category else f"has isthing {category['isthing']!r}"
            raise ValueError(f"{source}: category {category['name']!r} {given}; give 1 for a thing, 0 for stuff")
    supers = [c.get("supercategory") for c in categories.values()]
    used = {a["category_id"] for a in data["annotations"] if is_id(a.get("category_id"))}
    if kind != "panoptic" and 0 in categories and 0 not in used and categories[0]["name"] in supers:
        del categories[0]  # Roboflow's export lists the data set itself as category 0
    if not categories:
        raise ValueError(f"{source}: it has no categories")
    left_out = set()
    if kind == "panoptic" and task == "instance":
        left_out = {i for i, category in categories.items() if not category["isthing"]}
    if kind == "instance" and task == "semantic" and BACKGROUND not in {c["name"] for c in categories.values()}:
        free = 0 if 0 not in categories else max(categories) + 1
        categories[free] = {"name": BACKGROUND}
    ids = sorted(i for i in categories if i not in left_out)
    if not ids:
        raise ValueError(f"{source}: it has no category that is a thing")
    names = tuple(str(categories[i]["name"]) for i in ids)
    stuff = ()
    if task == "panoptic":
        stuff = tuple(label for label, i in enumerate(ids) if not categories[i]["isthing"])
    if task != "semantic":
        official = label_space(f"coco_{task}")
        if tuple(ids) == official.dataset_ids and names == official.names:
            return official, left_out
    return LabelSpace(source, names, stuff, tuple(ids)), left_out


def _images(entries: list, rows: Rows, source: str) -> dict[int, dict]:
    images: dict[int, dict] = {}
    for entry in entries:
        if not is_id(entry.get("id")) or not entry.get("file_name") or not isinstance(entry["file_name"], str):
            rows.problem(source, f"image {entry.get('id')!r} needs an integer id and a file_name")
        elif entry["id"] in images:
            rows.problem(source, f"image id {entry['id']} is there twice")
        else:
            images[entry["id"]] = entry
    return images


def _panoptic(data, images, space, left_out, rows, finder, pngs: Tree, source: str, keep_empty: bool) -> None:
    known = set(pngs.names)
    annotations: dict[int, dict] = {}
    for annotation in data["annotations"]:
        key = annotation.get("image_id")
        if not is_id(key) or key not in images:
            rows.problem(source, f"annotation of {annotation.get('file_name')!r}: there is no image with id {key!r}")
        elif key in annotations:
            rows.problem(source, f"image id {key} has two annotations")
        else:
            annotations[key] = annotation
    for key in _order(images):
        name = images[key]["file_name"]
        annotation = annotations.get(key, {"segments_info": []})
        where = f"{source}: image {key} ({name})"
        segments, seen = [], set()
        infos = annotation.get("segments_info")
        if not isinstance(infos, list) or not all(isinstance(info, dict) for info in infos):
            rows.problem(where, "its annotation has no list 'segments_info'")
            continue
        for info in infos:
            if not is_id(info.get("id")) or not 0 < info["id"] < 2**24:
                rows.problem(where, f"segment id {info.get('id')!r} is not an integer in 1 … 16777215")
            elif info["id"] in seen:
                rows.problem(where, f"segment id {info['id']} is there twice")
            elif is_id(info.get("category_id")) and info["category_id"] in left_out:
                seen.add(info["id"])
            elif not is_id(info.get("category_id")) or info["category_id"] not in space.dataset_id_to_label:
                rows.problem(
                    where, f"segment {info['id']}: category {info.get('category_id')!r} is not in the categories"
                )
            elif fault := _check_flags(info):
                rows.problem(where, f"segment {info['id']}: {fault}")
            else:
                label = space.dataset_id_to_label[info["category_id"]]
                segments.append(segment(info["id"], label, info.get("iscrowd", 0), info.get("area", -1)))
                seen.add(info["id"])
        png = ""
        try:
            image = finder(name, source)
            if annotation.get("file_name"):
                png_name = safe_name(annotation["file_name"], source)
                if png_name not in known:
                    raise ValueError(f"its png {png_name!r} is not below {pngs}")
                png = pngs.locate(png_name)
            elif segments:
                raise ValueError("its annotation has segments but no file_name")
        except ValueError as error:
            rows.problem(where, str(error).removeprefix(f"{source}: "))
            continue
        if keep_empty or segments:
            rows.add(key, name, image, png, segments=sorted(segments, key=lambda s: s["id"]), size=_size(images[key]))


def _instance(data, images, space, rows, finder, source: str, keep_empty: bool, crowds_as_instances: bool) -> None:
    segments: dict[int, list[dict]] = {key: [] for key in images}
    seen, skipped = set(), 0
    for annotation in data["annotations"]:
        key, number = annotation.get("image_id"), annotation.get("id")
        where = f"{source}: annotation {number!r}"
        if not is_id(key) or key not in images:
            rows.problem(where, f"there is no image with id {key!r}")
            continue
        size = _size(images[key]) or (None, None)
        if not is_id(number) or number in seen:
            rows.problem(where, "an annotation needs an integer id of its own")
        elif not is_id(annotation.get("category_id")) or annotation["category_id"] not in space.dataset_id_to_label:
            rows.problem(where, f"category {annotation.get('category_id')!r} is not in the categories")
        elif not (shape := _drawn(annotation.get("segmentation"))):
            skipped += 1
            seen.add(number)
        elif fault := check_shape(shape, size) or _check_flags(annotation):
            rows.problem(where, fault)
        else:
            label = space.dataset_id_to_label[annotation["category_id"]]
            crowd = 0 if crowds_as_instances else annotation.get("iscrowd", 0)
            segments[key].append(segment(number, label, crowd, annotation.get("area", -1), shape))
            seen.add(number)
    if skipped:
        left = f"{skipped} of {len(data['annotations'])} annotations have no mask (boxes only, or two points)"
        if skipped == len(data["annotations"]):
            raise ValueError(f"{source}: {left}; instance segmentation needs polygons or RLE")
        logger.warning(f"{source}: {left} and are left out")
    for key in _order(images):
        try:
            image = finder(images[key]["file_name"], source)
        except ValueError as error:
            rows.problem(source, str(error).removeprefix(f"{source}: "))
            continue
        if keep_empty or segments[key]:
            rows.add(key, images[key]["file_name"], image, segments=segments[key], size=_size(images[key]))


def _drawn(shape):
    """A COCO `segmentation` without polygons of fewer than three points; anything false where nothing is left."""
    if isinstance(shape, list):
        return [polygon for polygon in shape if not (isinstance(polygon, list) and len(polygon) < 6)]
    return shape


def _check_flags(entry: dict) -> str | None:
    """What is wrong with a segment's `iscrowd` and `area`, or None."""
    if entry.get("iscrowd", 0) not in (0, 1):
        return f"its iscrowd is {entry['iscrowd']!r}, not 0 or 1"
    if not is_number(entry.get("area", 0)):
        return f"its area is {entry['area']!r}, not a finite number"
    return None


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


def search_trees(path: Path, split: str) -> list[Tree]:
    """Everything to look in: the folder, then the official archives beside each other in it."""
    trees = [Tree(path)]
    if path.is_dir():
        names = ["panoptic_annotations_trainval", "annotations_trainval", *SPLIT_NAMES[split]]
        zips = [path / f"{name}2017.zip" for name in names]
        trees += [Tree(zipped) for zipped in zips if zipped.is_file()]
    return trees


def has_annotations(tree: Tree) -> bool:
    """Whether a json of the tree holds COCO annotations of any kind."""
    names = (name for name in tree.names if name.endswith(".json") and PurePosixPath(name).name != "classes.json")
    return any(is_kind(tree, name, kind) for name in names for kind in ("panoptic", "instance"))


def annotation_file(trees: list[Tree], task: str, split: str, path: Path) -> tuple[str, Tree, str]:
    """The kind and the json of this task and split. A json that names no split serves both."""
    files = [(tree, name) for tree in trees for name in tree.names if name.endswith(".json")]
    for kind in KINDS[task]:
        found = [(tree, name) for tree, name in files if is_kind(tree, name, kind)]
        if found:
            break
    other = {s for names in SPLIT_NAMES.values() for s in names} - {*SPLIT_NAMES[split]}
    for words in SPLIT_NAMES[split]:
        named = [pair for pair in found if mentions(pair[1], words)]
        if len(named) > 1:
            raise ValueError(
                f"{path}: {len(named)} {task} annotation files for {split!r}: {named[0][1]}, {named[1][1]}; keep one"
            )
        if named:
            return kind, *named[0]
    neutral = [pair for pair in found if not any(mentions(pair[1], word) for word in other)]
    if len(neutral) == 1:
        return kind, *neutral[0]
    for tree, name in files:
        tree.json(name)  # one that is no JSON is the likelier reason
    have = ", ".join(name for _, name in found) or "none"
    hint = "; for data of another kind give --task instance or --task semantic" if task == "panoptic" else ""
    raise ValueError(
        f"{path}: no COCO {task} annotation file for split {split!r} (annotation files of that kind: {have}){hint}"
    )


def is_kind(tree: Tree, name: str, kind: str) -> bool:
    """Whether a json is COCO's of this kind, by name where it is official, else by a look at its first bytes.

    Panoptic annotations hold `segments_info`; instance ones `segmentation`. Captions and key points are neither.
    """
    stem = PurePosixPath(name).name
    if stem.startswith(
        ("instances_", "panoptic_train", "panoptic_val", "captions_", "person_keypoints_", "image_info_")
    ):
        return stem.startswith("panoptic_" if kind == "panoptic" else "instances_")
    text = tree.read(name)
    if b'"images"' not in text or b'"annotations"' not in text:
        return False
    return (b'"segments_info"' in text) == (kind == "panoptic")


class Finder:
    """Finds an image by the json's `file_name`: beside the json, in a folder of the split, or the only one so named."""

    def __init__(self, trees: list[Tree], prefer: tuple[str, ...], avoid: str, near: str):
        self.trees, self.prefer, self.near = trees, prefer, near
        self.by_name: dict[str, list[tuple[Tree, str]]] = {}
        for tree in trees:
            for name in tree.names:
                folder, _, file = name.rpartition("/")
                if file.lower().endswith(IMAGE_SUFFIXES) and avoid not in folder.split("/"):  # panoptic pngs are none
                    self.by_name.setdefault(file, []).append((tree, name))

    def __call__(self, file_name: str, source: str) -> str:
        path = PurePosixPath(file_name.replace("\\", "/"))
        # of a server's path, as Label Studio writes it, the last part is looked for
        name = path.name if path.is_absolute() else safe_name(file_name, source)
        found = [(t, n) for t, n in self.by_name.get(PurePosixPath(name).name, ()) if f"/{n}".endswith(f"/{name}")]
        if len(found) > 1:
            beside = str(PurePosixPath(self.near) / name)
            split = [(t, n) for t, n in found if any(mentions(f"{t.root.stem} {n}", word) for word in self.prefer)]
            found = [(t, n) for t, n in found if n == beside] or split or found
        if not found:
            raise ValueError(f"{source}: image {file_name!r} is not below {self.trees[0]}")
        if len(found) > 1:
            raise ValueError(f"{source}: image {file_name!r} is ambiguous: {found[0][1]} and {found[1][1]}")
        return found[0][0].locate(found[0][1])


def png_tree(tree: Tree, name: str) -> Tree:
    """Where a panoptic json's pngs are: the folder or zip of the json's own name beside it (COCO's convention)."""
    stem, parent = PurePosixPath(name).stem, PurePosixPath(name).parent
    folder, zipped = str(parent / stem), str(parent / f"{stem}.zip")
    if zipped in tree.names and not any(n.startswith(f"{folder}/") for n in tree.names):
        if tree.is_archive:
            raise ValueError(f"{tree.root}: {zipped} is a zip inside a zip; unpack {tree.root} in its folder")
        inner = Tree(tree.locate(zipped))
        return inner.below(stem) if any(n.startswith(f"{stem}/") for n in inner.names) else inner
    return tree.below(folder)
