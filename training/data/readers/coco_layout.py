"""Where a COCO data set keeps its files: official archives, extracted folders, exports of other tools.

The user gives the folder only: the annotation file is recognized by its name or its contents, an image is looked
for beside the json, in a folder of the split, then anywhere, and panoptic pngs by COCO's convention.
"""

from pathlib import Path, PurePosixPath

from ..files import IMAGE_SUFFIXES, SPLIT_NAMES, Tree, mentions, safe_name

KINDS = {
    "panoptic": ("panoptic",),
    "instance": ("instance", "panoptic"),
    "semantic": ("panoptic", "instance"),
}
"""Task → the kinds of annotations that serve it, the best first."""


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
