"""A zip inside a zip (COCO's panoptic pngs) is copied out once, to a cache all worker processes share."""

import os
import shutil
import tempfile
import zipfile
import zlib
from hashlib import sha256
from pathlib import Path

from datasets import config

from .files import MOST_ARCHIVE, Tree, open_member


def unpacked(tree: Tree, name: str) -> Path:
    """A path to the inner archive `name` of a tree; a copy in the `datasets` cache where the tree is itself a zip.

    The copy's name depends on the archive's path, size and date; it is written atomically, so processes may race.
    """
    if not tree.is_archive:
        return Path(tree.locate(name))
    stat = tree.root.stat()
    key = sha256(f"{tree.root.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{name}".encode()).hexdigest()[:16]
    cached = Path(config.HF_DATASETS_CACHE) / "eomt" / f"{Path(name).stem}-{key}.zip"
    if not cached.exists():
        cached.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=cached.parent)
        try:
            with open_member(tree.root, tree.prefix + name, MOST_ARCHIVE) as source, os.fdopen(handle, "wb") as target:
                shutil.copyfileobj(source, target, 1 << 22)
            os.replace(temporary, cached)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise ValueError(f"{tree.root}: {name!r} in it is damaged ({error}); download it again") from None
        finally:
            Path(temporary).unlink(missing_ok=True)
    return cached
