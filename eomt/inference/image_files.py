"""Image files: which ones a user means, and what each is called in the results."""

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".jp2", ".avif",
)  # fmt: skip
"""What is taken from a folder; a file named outright may be called anything."""


def find_images(sources: Iterable[str | Path], exclude: Path | None = None) -> dict[str, Path]:
    """Files, folders (searched to the bottom) and globs → {name: file}, in a fixed order.

    A name is the path below the folder (or below the glob's fixed part) without its suffix. Files that would share
    one get the path from their common root, and then their suffix: "a/1", "b/1"; "1_jpg", "1_png". A "1_jpg.png" beside
    these keeps its name, and "1.jpg" becomes "1_jpg_".

    Args:
        exclude: a folder to leave out: the results of an earlier run.

    Raises:
        ValueError: for a source without images.
        FileNotFoundError: for one that is not there.
    """
    named: dict[Path, str] = {}
    for source in sources:
        found = 0
        for base, path in _expand(str(source)):
            path = path.absolute()
            if exclude is not None and exclude.absolute() in path.parents:
                continue
            found += 1
            named.setdefault(path, path.relative_to(base.absolute()).with_suffix("").as_posix())
        if not found:
            raise ValueError(f"no images in {str(source)!r}; give image files, a folder that holds some, or a glob")
    names = list(named.values())
    if len(set(names)) < len(names):
        root = Path(os.path.commonpath([path.parent for path in named]))
        named = {path: path.relative_to(root).with_suffix("").as_posix() for path in named}
    uses = Counter(named.values())
    taken = {name for name, count in uses.items() if count == 1}
    unique = {}
    for path, name in named.items():
        if uses[name] > 1:
            name = f"{name}_{path.suffix[1:]}"
            while name in taken:
                name += "_"
            taken.add(name)
        unique[name] = path
    return unique


def require_distinct(images: Iterable[Mapping], suffix: str) -> None:
    """`ValueError` where two images' labels, NAME + suffix, would be one file; `images` have a `file_name` each."""
    names: dict[Path, str] = {}
    for image in images:
        name = image["file_name"]
        other = names.setdefault(Path(name).with_suffix(suffix), name)
        if other != name:
            label = Path(name).with_suffix(suffix)
            raise ValueError(f"{other} and {name} would both have their labels in {label}; rename one of them")


def _expand(source: str) -> Iterator[tuple[Path, Path]]:
    """One source → (base, file) pairs."""
    path = Path(source)
    if path.is_dir():
        for name in sorted(files_below(str(path))):
            file = path / name
            if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith("."):
                yield path, file
    elif path.exists():
        if not path.is_file():
            raise ValueError(f"{source!r} is neither a file nor a folder but a pipe or a device; give an image file")
        yield path.parent, path
    elif glob.has_magic(source):
        fixed = Path(*_before_magic(path.parts)) if _before_magic(path.parts) else Path(".")
        for match in sorted(glob.glob(source, recursive=True)):
            if Path(match).is_file():
                yield fixed, Path(match)
    else:
        raise FileNotFoundError(f"there is no file or folder {source!r}")


def files_below(base: str) -> list[str]:
    """Every regular file's name relative to a folder; links are followed, except back to a folder that they lie in.

    Pipes and devices are left out: reading one may wait for ever.
    """
    found = []
    waiting = [("", frozenset({os.path.realpath(base)}))]  # folder, where it and those it lies in really are
    while waiting:
        below, inside = waiting.pop()
        with os.scandir(os.path.join(base, below)) as entries:
            for entry in entries:
                name = below + entry.name
                if entry.is_dir():
                    real = os.path.realpath(entry.path) if entry.is_symlink() else entry.path
                    if real not in inside:
                        waiting.append((f"{name}/", inside | {os.path.realpath(entry.path)}))
                elif entry.is_file():
                    found.append(name)
    return found


def _before_magic(parts: tuple[str, ...]) -> list[str]:
    fixed = []
    for part in parts[:-1]:
        if glob.has_magic(part):
            break
        fixed.append(part)
    return fixed
