"""Locations: one string for a file in a folder, a zip or a data set of the `datasets` library.

    /data/a.png                              a file
    zip://train/a.png::/data/train.zip       a member of a zip
    row://3::image::train::/data/saved       row, column and split of a data set of the `datasets` library

Plain strings keep rows picklable. Each process opens an archive on first use. File names in annotations and archives
must stay below their root.
"""

import json
import lzma
import os
import struct
import zipfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import datasets

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".jp2", ".avif",
    ".npy",
)  # fmt: skip
"""Images that are found by listing a folder. A file named directly may have any suffix."""
HEIC_SUFFIXES = (".heic", ".heif")
SPLIT_NAMES = {  # in order of preference; "test" serves as validation only if nothing else does
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "test"),
    "test": ("test",),
}
MAX_BYTES = 1 << 31  # of a JSON file or an image; the largest JSON file of COCO has 0.5 GB, that of LVIS 1 GB
MAX_TEXT_BYTES = 1 << 24  # of a YAML file, a list of classes or the polygons of an image
_tables: dict[tuple[int, str], datasets.Dataset | datasets.DatasetDict] = {}
_archives: dict[tuple[int, str], zipfile.ZipFile] = {}  # (process, path): forked processes must not share a handle


def files_below(base: str) -> list[str]:
    """Names of all regular files below a folder, relative to it. Links are followed, except to a parent folder.

    Pipes and devices are left out: reading one may block forever.
    """
    found = []
    waiting = [("", frozenset({os.path.realpath(base)}))]  # (folder, real paths of the folder and its parents)
    while waiting:
        folder, parents = waiting.pop()
        with os.scandir(os.path.join(base, folder)) as entries:
            for entry in entries:
                name = folder + entry.name
                if entry.is_dir():
                    real = os.path.realpath(entry.path)
                    if real not in parents:
                        waiting.append((f"{name}/", parents | {real}))
                elif entry.is_file():
                    found.append(name)
    return found


def mentions(name: str, word: str) -> bool:
    """Whether a path contains a word: "train" in "train/_annotations.coco.json" or "panoptic_train2017.json"."""
    words = "".join(c if c.isalpha() else " " for c in name.lower()).split()
    return word in words


def mentioned_splits(names: Collection[str]) -> list[str]:
    """Splits with a name in one of the paths."""
    return [split for split, words in SPLIT_NAMES.items() if any(mentions(n, w) for n in names for w in words)]


@contextmanager
def naming(where: str | Path) -> Iterator[None]:
    """Prefix the message of a `ValueError` with a file, or a place in it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def safe_name(name: str) -> str:
    """A relative path with forward slashes. Raises `ValueError` for a path that leaves its folder."""
    path = PurePosixPath(str(name).replace("\\", "/"))
    if not path.parts or path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        raise ValueError(f"the file name {name!r} is empty or leaves the data set's folder; use a relative path")
    return str(path)


def open_archive(path: str | Path) -> zipfile.ZipFile:
    """This process's handle of a zip file."""
    key = (os.getpid(), str(path))
    if key not in _archives:
        try:
            archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError, struct.error, OSError) as error:
            raise ValueError(f"{path}: not a readable zip file ({error}); download it again") from None
        for info in archive.infolist():
            info.filename = info.filename.replace("\\", "/")  # as PowerShell writes them
        archive.NameToInfo = {info.filename: info for info in archive.infolist()}
        _archives[key] = archive
    return _archives[key]


def read_bytes(location: str, limit: int = MAX_BYTES) -> bytes:
    """The bytes at a location. Raises `ValueError` for more than `limit` bytes, before they are read."""
    if location.startswith("row://"):
        return _row_bytes(location, limit)
    if location.startswith("zip://"):
        return _member_bytes(*location.removeprefix("zip://").split("::", 1), limit)
    with open(location, "rb") as file:
        _check_limit(location, os.fstat(file.fileno()).st_size, limit)
        return file.read()


def _member_bytes(member: str, archive: str, limit: int) -> bytes:
    """Raise `ValueError` for a missing, damaged, encrypted or oversized member."""
    opened = open_archive(archive)
    try:
        info = opened.getinfo(member)
        _check_limit(f"{archive}: {member!r}", info.file_size, limit)
        with opened.open(info) as file:
            return file.read(limit)
    except KeyError:
        raise ValueError(f"{archive}: there is no file {member!r} in it") from None
    except RuntimeError as error:  # encrypted, or an unsupported compression, such as Deflate64 of Windows
        raise ValueError(f"{archive}: {member!r}: {error}; unpack the archive and give the folder") from None
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError) as error:
        raise ValueError(f"{archive}: {member!r} is damaged ({error}); download it again") from None


def is_saved(folder: Path) -> bool:
    """Whether a folder was written by `save_to_disk` of the `datasets` library."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def open_table(source: str) -> datasets.Dataset | datasets.DatasetDict:
    """This process's handle of a data set of the `datasets` library: a folder, or a name on the Hub."""
    key = (os.getpid(), source)
    if key not in _tables:
        load = datasets.load_from_disk if is_saved(Path(source)) else datasets.load_dataset
        _tables[key] = load(source)
    return _tables[key]


def _row_bytes(location: str, limit: int) -> bytes:
    """The encoded image at "row://number::column::split::source"."""
    number, column, split, source = location.removeprefix("row://").split("::", 3)
    table = open_table(source)
    table = table[split] if split else table
    cell = table.select_columns(column).cast_column(column, datasets.Image(decode=False))[int(number)][column]
    if cell is None:
        raise ValueError(f"{source}: row {number} has no {column!r}")
    if cell["bytes"] is None:
        return read_bytes(cell["path"], limit)
    _check_limit(f"{source}: {column!r} of row {number}", len(cell["bytes"]), limit)
    return cell["bytes"]


def _check_limit(what: str, size: int, limit: int) -> None:
    if size > limit:
        raise ValueError(f"{what} has {size} bytes; the limit is {limit}")


class Tree:
    """The files below a folder, or below `prefix` in a zip. File names are relative to it."""

    def __init__(self, root: str | Path, prefix: str = ""):
        self.root = Path(root)
        self.prefix = prefix.strip("/") + "/" if prefix else ""
        self.is_archive = self.root.is_file()
        if not self.root.exists():
            raise ValueError(f"{self.root}: there is no such file or folder")
        self._names: list[str] | None = None

    @property
    def names(self) -> list[str]:
        """All file names, sorted, without hidden files and the `__MACOSX` folder of macOS."""
        if self._names is None:
            if self.is_archive:
                found = [n for n in open_archive(self.root).namelist() if n.startswith(self.prefix) and n[-1] != "/"]
                with naming(self.root):
                    found = [safe_name(n.removeprefix(self.prefix)) for n in found]
            else:
                found = files_below(str(self.root / self.prefix))
            self._names = sorted(n for n in found if not n.startswith("__MACOSX/") and "/." not in f"/{n}")
        return self._names

    def below(self, folder: str) -> "Tree":
        return Tree(self.root, f"{self.prefix}{folder}".strip("/"))

    def locate(self, name: str) -> str:
        """The location of a file. Callers check its existence (`names`)."""
        if self.is_archive:
            return f"zip://{self.prefix}{name}::{self.root}"
        return str(self.root / self.prefix / name)

    def read(self, name: str, limit: int = MAX_BYTES) -> bytes:
        return read_bytes(self.locate(name), limit)

    def stems(self, folder: str, suffixes: str | tuple[str, ...] = "") -> dict[str, str]:
        """{stem: name} of the files in folders of this name, at any depth. Raises `ValueError` for a repeated stem."""
        stems: dict[str, str] = {}
        for name in self.names:
            path = PurePosixPath(name)
            if f"/{path.parent}".endswith(f"/{folder}") and name.lower().endswith(suffixes):
                if path.stem in stems:
                    raise ValueError(f"{self}: {stems[path.stem]} and {name} have the same name; remove one of the two")
                stems[path.stem] = name
        return stems

    def text(self, name: str, limit: int = MAX_TEXT_BYTES) -> str:
        try:
            return self.read(name, limit).decode("utf-8-sig")  # Windows writes a byte order mark
        except UnicodeDecodeError as error:
            raise ValueError(f"{self}/{name}: not a UTF-8 text file ({error})") from None

    def json(self, name: str):
        try:
            return json.loads(self.text(name, MAX_BYTES))
        except (ValueError, RecursionError) as error:  # also for an integer of too many digits
            raise ValueError(f"{self}/{name}: not a readable JSON file ({error})") from None

    def __str__(self) -> str:
        return f"{self.root}{'!' if self.is_archive else '/'}{self.prefix}".rstrip("/!")


def first_tree(*choices: tuple[Path, str]) -> Tree | None:
    """The first existing (folder or zip, prefix): callers list the extracted layout before the zip."""
    for root, prefix in choices:
        if (root.is_file() and root.suffix == ".zip") or (root / prefix).is_dir():
            return Tree(root, prefix)
    return None
