"""Atomic writing: outputs are written under a temporary name and renamed when complete."""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

MODEL_FILES = ("config.json", "preprocessor_config.json")
RUN_FILE = "trainer_state.json"
ENCODER = "encoder"  # folder with the files of PMT's encoder, beside those of an exported decoder
ENCODER_FILES = {"model.onnx", "model.onnx.data", "openvino_model.xml", "openvino_model.bin"}


def require_free(target: Path, force: bool, source: str | os.PathLike | None = None) -> None:
    """Raise `ValueError` if `target` exists and must not be replaced.

    With `force`, files, empty folders and folders of a model, also of one exported in two files, can be replaced.
    Folders with other files, a training run or the `source` of the new content cannot.
    """
    if not target.exists():
        return
    if source is not None and target.resolve() in (Path(source).resolve(), *Path(source).resolve().parents):
        raise ValueError(f"{target} holds {source}, which would be lost; choose another name")
    if not force:
        raise ValueError(f"{target} exists; choose another name, or give force")
    if target.is_dir() and any(target.iterdir()) and not any((target / name).is_file() for name in MODEL_FILES):
        raise ValueError(f"{target} is a folder with files other than a model, which force does not replace")
    if target.is_dir() and any(_is_precious(path) for path in target.iterdir()):
        raise ValueError(f"{target} holds a training run or other folders, which force does not replace")


def _is_precious(path: Path) -> bool:
    """Whether a file or folder beside a model is part of a run or foreign."""
    if path.is_dir():
        return path.name != ENCODER or not ENCODER_FILES.issuperset(os.listdir(path))
    return path.name == RUN_FILE


def require_writable(folder: Path) -> None:
    """Create a folder. Raises `OSError` if it is not writable. Called before long work."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


@contextmanager
def atomic(target: str | os.PathLike, folder: bool = False, force: bool = False) -> Iterator[Path]:
    """Yield a temporary path for writing. It replaces `target` at the end, and is deleted after an error."""
    target = Path(target)
    require_free(target, force)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    part = temporary / target.name
    try:
        if folder:
            part.mkdir()
        yield part
        require_free(target, force)  # another run may have written it
        if target.is_dir():
            target.rename(temporary / "replaced")
        os.replace(part, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_atomic(path: str | os.PathLike, write: Callable[[Path], None]) -> None:
    """Call `write(temporary path)`, then move the result to `path`."""
    with atomic(path, force=True) as part:
        write(part)


def write_text(path: str | os.PathLike, text: str) -> None:
    write_atomic(path, lambda part: part.write_text(text, encoding="utf-8"))


def read_json(path: str | os.PathLike):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def write_json(path: str | os.PathLike, value, indent: int | None = None) -> None:
    """Write a value as JSON; NaN and infinity become null (`finite`)."""
    write_text(path, json.dumps(finite(value), indent=indent, allow_nan=False) + "\n")


def finite(value):
    """Replace NaN and infinity, which JSON lacks, by None, and numpy scalars by Python numbers."""
    if isinstance(value, dict):
        return {key: finite(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
