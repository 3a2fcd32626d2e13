"""Files that are whole or not there."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

_umask = os.umask(0)  # can only be read by setting it, which other threads' files would see: once, at import
os.umask(_umask)


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """`write(temporary path)`, then rename: a reader, or the next run, never meets half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
    os.close(handle)
    try:
        write(Path(name))
        os.chmod(name, 0o666 & ~_umask)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_json(path: Path, value, indent: int | None = None) -> None:
    write_text(path, json.dumps(value, indent=indent) + "\n")
