"""Where bytes come from: a folder or a zip, and one way to name a file in either.

A *location* is a plain string, so that rows pickle and spawn: "/data/a.png" or "zip://train/a.png::/data/train.zip",
or "row://3::image::train::/data/saved" for a row of a data set of the `datasets` library.
Archives are opened on first use, once a process. Names out of an annotation file or an archive never leave their root.
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
"""What is taken from a folder; a file named outright may be called anything."""
HEIC_SUFFIXES = (".heic", ".heif")
SPLIT_NAMES = {  # best first; where there is no other, "test" is what is held out
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "test"),
    "test": ("test",),
}
MOST_BYTES = 1 << 31  # of a json or an image: COCO's largest json has half a gigabyte, LVIS' one
MOST_TEXT = 1 << 24  # of a yaml, a list of classes or an image's polygons
_tables: dict[tuple[int, str], datasets.Dataset | datasets.DatasetDict] = {}
_archives: dict[tuple[int, str], zipfile.ZipFile] = {}  # (process, path): a handle must not cross a fork


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


def mentions(name: str, word: str) -> bool:
    """Whether a path has the split's name as a word: "train/_annotations.coco.json", "panoptic_train2017.json"."""
    words = "".join(c if c.isalpha() else " " for c in name.lower()).split()
    return word in words


def mentioned_splits(names: Collection[str]) -> list[str]:
    """The splits that paths mention."""
    return [split for split, words in SPLIT_NAMES.items() if any(mentions(n, w) for n in names for w in words)]


@contextmanager
def naming(where: str | Path) -> Iterator[None]:
    """Put the file, or the place in it, before the message of a `ValueError`."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def safe_name(name: str) -> str:
    """A relative path with forward slashes; `ValueError` where it would leave its folder."""
    path = PurePosixPath(str(name).replace("\\", "/"))
    if not path.parts or path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        raise ValueError(f"the file name {name!r} is empty or leaves the data set's folder; use a relative path")
    return str(path)


def open_archive(path: str | Path) -> zipfile.ZipFile:
    """The process's handle of a zip file."""
    key = (os.getpid(), str(path))
    if key not in _archives:
        try:
            _archives[key] = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError, struct.error, OSError) as error:
            raise ValueError(f"{path}: not a readable zip file ({error}); download it again") from None
    return _archives[key]


def read_bytes(location: str, limit: int = MOST_BYTES) -> bytes:
    """The file at a location, of at most `limit` bytes: `ValueError` for a larger one, before it fills the memory."""
    if location.startswith("row://"):
        return _row_bytes(location, limit)
    if location.startswith("zip://"):
        return _member_bytes(*location.removeprefix("zip://").split("::", 1), limit)
    with open(location, "rb") as file:
        _require_size(location, os.fstat(file.fileno()).st_size, limit)
        return file.read()


def _member_bytes(member: str, archive: str, limit: int) -> bytes:
    """A file in a zip; `ValueError` where it cannot be unpacked, or would unpack to more than it may."""
    opened = open_archive(archive)
    try:
        info = opened.getinfo(member)
        _require_size(f"{archive}: {member!r}", info.file_size, limit)
        with opened.open(info) as file:
            return file.read(limit)
    except KeyError:
        raise ValueError(f"{archive}: there is no file {member!r} in it") from None
    except RuntimeError as error:  # encrypted, or a compression that is not read here, as deflate64 of Windows
        raise ValueError(f"{archive}: {member!r}: {error}; unpack the archive and give the folder") from None
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError) as error:
        raise ValueError(f"{archive}: {member!r} is damaged ({error}); download it again") from None


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` of the `datasets` library wrote a folder."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def open_table(source: str) -> datasets.Dataset | datasets.DatasetDict:
    """The process's handle of a data set of the `datasets` library: a folder, or a name on the hub."""
    key = (os.getpid(), source)
    if key not in _tables:
        _tables[key] = (datasets.load_from_disk if is_saved(Path(source)) else datasets.load_dataset)(source)
    return _tables[key]


def _row_bytes(location: str, limit: int) -> bytes:
    """The encoded image in a row's column: "row://number::column::split::source"."""
    number, column, split, source = location.removeprefix("row://").split("::", 3)
    table = open_table(source)
    table = table[split] if split else table
    cell = table.select_columns(column).cast_column(column, datasets.Image(decode=False))[int(number)][column]
    if cell is None:
        raise ValueError(f"{source}: row {number} has no {column!r}")
    if cell["bytes"] is None:
        return read_bytes(cell["path"], limit)
    _require_size(f"{source}: {column!r} of row {number}", len(cell["bytes"]), limit)
    return cell["bytes"]


def _require_size(what: str, size: int, limit: int) -> None:
    if size > limit:
        raise ValueError(f"{what} has {size} bytes; more than {limit} are not read here")


class Tree:
    """The files below a folder, or below `prefix` in a zip, under their relative names."""

    def __init__(self, root: str | Path, prefix: str = ""):
        self.root, self.prefix = Path(root), prefix.strip("/") + "/" if prefix else ""
        self.is_archive = self.root.is_file()
        if not self.root.exists():
            raise ValueError(f"{self.root}: there is no such file or folder")
        self._names: list[str] | None = None

    @property
    def names(self) -> list[str]:
        """Every file's relative name, sorted; hidden files and macOS' `__MACOSX` left out."""
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
        """The part of this tree below a folder."""
        return Tree(self.root, f"{self.prefix}{folder}".strip("/"))

    def locate(self, name: str) -> str:
        """The location of a file of this tree; its existence is the caller's to check (`names`)."""
        if self.is_archive:
            return f"zip://{self.prefix}{name}::{self.root}"
        return str(self.root / self.prefix / name)

    def read(self, name: str, limit: int = MOST_BYTES) -> bytes:
        return read_bytes(self.locate(name), limit)

    def stems(self, folder: str, suffixes: str | tuple[str, ...] = "") -> dict[str, str]:
        """Stem → name of the files in a folder, at any depth; `ValueError` for two files of one stem."""
        stems: dict[str, str] = {}
        for name in self.names:
            path = PurePosixPath(name)
            if f"/{path.parent}".endswith(f"/{folder}") and name.lower().endswith(suffixes):
                if path.stem in stems:
                    raise ValueError(f"{self}: {stems[path.stem]} and {name} have the same name; remove one of the two")
                stems[path.stem] = name
        return stems

    def text(self, name: str, limit: int = MOST_TEXT) -> str:
        try:
            return self.read(name, limit).decode("utf-8-sig")  # Windows writes a byte order mark
        except UnicodeDecodeError as error:
            raise ValueError(f"{self}/{name}: not a text file in UTF-8 ({error})") from None

    def json(self, name: str):
        try:
            return json.loads(self.text(name, MOST_BYTES))
        except (ValueError, RecursionError) as error:  # also an integer of too many digits
            raise ValueError(f"{self}/{name}: not a readable json file ({error})") from None

    def __str__(self) -> str:
        return f"{self.root}{'!' if self.is_archive else '/'}{self.prefix}".rstrip("/!")


def first_tree(*choices: tuple[Path, str]) -> Tree | None:
    """The first (folder or zip, prefix) that exists: an official layout is tried extracted, then zipped."""
    for root, prefix in choices:
        if (root.is_file() and root.suffix == ".zip") or (root / prefix).is_dir():
            return Tree(root, prefix)
    return None
