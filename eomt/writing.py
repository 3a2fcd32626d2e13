"""Output that is whole or not there: made under a temporary name, renamed when done."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MARKERS = ("config.json", "preprocessor_config.json")  # what a folder of ours holds


def require_free(target: Path, force: bool) -> None:
    """Raise `ValueError` where `target` exists and is not to be replaced.

    With `force` files are replaced, and folders that are empty or hold a model; any other folder is somebody's work.
    """
    if not target.exists():
        return
    if not force:
        raise ValueError(f"{target} exists; choose another name, or replace it with --force")
    if target.is_dir() and any(target.iterdir()) and not any((target / name).is_file() for name in MARKERS):
        raise ValueError(f"{target} is a folder with other files in it, not a model's; --force does not replace it")


@contextmanager
def whole(target: str | os.PathLike, folder: bool = False, force: bool = False) -> Iterator[Path]:
    """A path beside `target` to write to; it becomes `target` at the end, or vanishes when an error is raised."""
    target = Path(target)
    require_free(target, force)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    part = aside / target.name
    try:
        if folder:
            part.mkdir()
        yield part
        require_free(target, force)  # another run may have been faster
        if target.is_dir():
            target.rename(aside / "replaced")
        os.replace(part, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
