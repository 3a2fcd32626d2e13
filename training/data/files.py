"""Where bytes come from: a folder or a zip, one way to name a file in either, and images that fail with their name.

A *location* is a plain string, so that rows pickle and spawn: "/data/a.png" or "zip://train/a.png::/data/train.zip".
Archives are opened on first use, once a process. Names out of an annotation file or an archive never leave their root.
"""

import io
import json
import os
import zipfile
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from ...image_processing.images import orientation, to_rgb, upright

SPLIT_NAMES = {"train": ("train",), "val": ("val", "valid", "validation", "test")}  # best first
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
_archives: dict[tuple[int, str], zipfile.ZipFile] = {}  # (process, path): a handle must not cross a fork


def safe_name(name: str, source: str) -> str:
    """A relative path with forward slashes; `ValueError` where it would leave its folder."""
    path = PurePosixPath(str(name).replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in path.parts[0] if path.parts else True:
        raise ValueError(
            f"{source}: the file name {name!r} is empty or leaves the data set's folder; use a relative path"
        )
    return str(path)


def open_archive(path: str | Path) -> zipfile.ZipFile:
    """The process's handle of a zip file."""
    key = (os.getpid(), str(path))
    if key not in _archives:
        try:
            _archives[key] = zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:
            raise ValueError(f"{path}: not a readable zip file ({error}); download it again") from None
    return _archives[key]


def read_bytes(location: str) -> bytes:
    """The file at a location."""
    if not location.startswith("zip://"):
        return Path(location).read_bytes()
    member, archive = location.removeprefix("zip://").split("::", 1)
    try:
        return open_archive(archive).read(member)
    except KeyError:
        raise ValueError(f"{archive}: there is no file {member!r} in it") from None
    except zipfile.BadZipFile as error:
        raise ValueError(f"{archive}: {member!r} is damaged ({error}); download it again") from None


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
                found = [safe_name(n.removeprefix(self.prefix), str(self.root)) for n in found]
            else:
                found = _files_below(str(self.root / self.prefix))
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

    def read(self, name: str) -> bytes:
        return read_bytes(self.locate(name))

    def text(self, name: str) -> str:
        try:
            return self.read(name).decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{self}/{name}: not a text file in UTF-8 ({error})") from None

    def json(self, name: str):
        try:
            return json.loads(self.text(name))
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{self}/{name}: not a readable json file ({error})") from None

    def __str__(self) -> str:
        return f"{self.root}{'!' if self.is_archive else '/'}{self.prefix}".rstrip("/!")


def _files_below(base: str) -> list[str]:
    """Every file's name relative to a folder; links are followed, except back to a folder that they lie in."""
    found = []
    above = {base: {os.path.realpath(base)}}  # folder → where it and those it lies in really are
    for folder, folders, files in os.walk(base, followlinks=True):
        below = "" if folder == base else Path(folder).relative_to(base).as_posix() + "/"
        found += [below + file for file in files]
        inside = above.pop(folder)
        real = {name: os.path.realpath(os.path.join(folder, name)) for name in folders}
        folders[:] = [name for name in folders if real[name] not in inside]
        above |= {os.path.join(folder, name): inside | {real[name]} for name in folders}
    return found


def first_tree(*choices: tuple[Path, str]) -> Tree | None:
    """The first (folder or zip, prefix) that exists: an official layout is tried extracted, then zipped."""
    for root, prefix in choices:
        if (root.is_file() and root.suffix == ".zip") or (root / prefix).is_dir():
            return Tree(root, prefix)
    return None


def open_image(location: str, name: str) -> Image.Image:
    """A decoded PIL image; `ValueError` naming the file where it is missing, unreadable or truncated."""
    try:
        image = Image.open(io.BytesIO(read_bytes(location)))
        image.load()
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else f"unreadable image ({error})"
        raise ValueError(f"{name}: {reason}; mend or remove it") from None
    return image


def read_image(location: str, name: str, size: tuple[int, int] | None = None) -> torch.Tensor:
    """An RGB image: uint8 (3, H, W), turned as its EXIF orientation says.

    size: (H, W) of its annotation. Where the stored image has it, the annotation was made on that: no turning.
    """
    image = open_image(location, name)
    image = to_rgb(image if size is not None and image.size == (size[1], size[0]) else upright(image))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()  # from [H, W, 3]


def read_map(location: str, name: str) -> np.ndarray:
    """A label png: int32 (H, W). Palette images give their indices; RGB ones are read as COCO panoptic ids."""
    image = open_image(location, name)
    if image.mode in ("RGB", "RGBA"):
        rgb = np.asarray(image, dtype=np.int32)  # [H, W, 3 or 4]
        return rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]
    array = np.asarray(image)
    if array.ndim != 2:
        raise ValueError(f"{name}: a label image needs one channel or RGB, not mode {image.mode!r}")
    return array.astype(np.int32)


def image_size(location: str, name: str) -> tuple[int, int]:
    """(H, W) of the upright image out of its header, without decoding it."""
    try:
        source = io.BytesIO(read_bytes(location)) if location.startswith("zip://") else location
        with Image.open(source) as image:
            turned = orientation(image) > 4  # a quarter to the left or right
            return (image.width, image.height) if turned else (image.height, image.width)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"{name}: unreadable image ({error}); mend or remove it") from None
