"""Read third-party state dicts safely, rename their keys by a table of `key_maps`, and check that they fit a model."""

import json
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .key_maps import Table

StateDict = dict[str, Tensor]

LONGEST_CONFIG = 10_000_000  # bytes
CODES = (torch.int8, torch.uint8, torch.float8_e4m3fn, torch.float8_e5m2)
WRAPPERS = re.compile(r"(^|\.)_orig_mod(?=\.)")


def read_state_dict(source: str | Path | Mapping | nn.Module) -> StateDict:
    """Tensors by name, from a state dict, a model, a weights file or a directory of weights files.

    Files are safetensors or whatever `torch.load(weights_only=True)` reads. The tensors of a training checkpoint are
    those under "state_dict" (Lightning), "model" (DeiT) or "teacher" (DINO). `_orig_mod` of compiled models is stripped
    from names.

    Raises:
        ValueError: for a damaged file, more than tensors, quantized weights, NaN or infinity.
        FileNotFoundError: when there is no such file.
    """
    if isinstance(source, nn.Module):
        source = source.state_dict()
    if not isinstance(source, Mapping):
        source = _read_files(Path(source))
    for name in ("state_dict", "model", "teacher"):
        if isinstance(source.get(name), Mapping):
            source = source[name]
    unnamed = next((name for name in source if not isinstance(name, str)), None)
    if unnamed is not None:
        raise ValueError(f"the state dict has the key {unnamed!r:.60}; tensors are named by strings")
    state = {
        WRAPPERS.sub("", name).lstrip("."): tensor for name, tensor in source.items() if isinstance(tensor, Tensor)
    }
    if not state:
        raise ValueError("the state dict holds no tensor")
    for name, tensor in state.items():
        if tensor.dtype in CODES:
            raise ValueError(f"{name} holds {tensor.dtype}, codes of quantized weights; give the original checkpoint")
    require_finite("the state dict", state)
    return state


def _read_files(path: Path) -> Mapping:
    if path.is_dir():
        _refuse_quantized(path / "config.json")
        shards = sorted(path.glob("*.safetensors")) or sorted([*path.glob("*.bin"), *path.glob("*.pth")])
        if not shards:
            raise FileNotFoundError(f"{path} holds no .safetensors, .bin or .pth file")
        return {name: tensor for shard in shards for name, tensor in _read_files(shard).items()}
    if not path.is_file():
        raise FileNotFoundError(f"there is no weights file {path}")
    if path.suffix != ".safetensors":
        _check_archive(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))  # torch's own text advises to open it all the same
        what = f" ({found[1]})" if found else ""
        raise ValueError(f"{path} is damaged or holds more than tensors{what}, which is not safe to open") from None
    except Exception as error:  # what is not a pickle may raise anything
        if isinstance(error, MemoryError):
            raise
        reason = f"{type(error).__name__} {error}".splitlines()[0]
        raise ValueError(f"{path} cannot be read, it may be truncated: {reason}") from None
    if not isinstance(state, Mapping):
        raise ValueError(f"{path} holds a {type(state).__name__}; a state dict is needed")
    return state


def _refuse_quantized(config: Path) -> None:
    """Raise `ValueError` for a folder of quantized weights: without their scales the codes are meaningless."""
    if config.is_file() and "quantization_config" in json.loads(config.read_text(encoding="utf-8")):
        raise ValueError(f"{config.parent} holds quantized weights; give the checkpoint that they were made from")


# A weights file holds the configuration where other loaders ignore it: in the header of a safetensors file, or as one
# more record of a `torch.save` archive.
CONFIG_KEY, CONFIG_RECORD = "eomt_config", "eomt_config.json"


def write_state_dict(path: Path, state: StateDict, config: str, wrap: bool = False) -> None:
    """Write weights and a configuration to one file.

    Args:
        path: safetensors if named so, else an archive of `torch.save`.
        config: JSON.
        wrap: put the weights under "state_dict", as Lightning does.
    """
    if path.suffix == ".safetensors":
        save_file(state, path, {"format": "pt", CONFIG_KEY: config})
        return
    with open(path, "wb") as file:  # torch's own writer ends the process if the disk is full
        torch.save({"state_dict": state} if wrap else state, file)
    with zipfile.ZipFile(path, "a") as archive:
        folder = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{folder}/{CONFIG_RECORD}", config)


def read_config(path: str | Path) -> dict:
    """The configuration that `write_state_dict` put into a file; {} if there is none."""
    path = Path(path)
    text = None
    if path.suffix == ".safetensors" and path.is_file():
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(CONFIG_KEY)
    elif path.is_file() and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            record = next((info for info in archive.infolist() if info.filename.endswith(f"/{CONFIG_RECORD}")), None)
            if record is not None and record.file_size <= LONGEST_CONFIG:
                text = archive.read(record)
    try:
        config = json.loads(text) if text else {}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: the configuration in it is not JSON: {error}") from None
    return config if isinstance(config, dict) else {}


def _check_archive(path: Path) -> None:
    """Verify the checksums of a `torch.save` archive, which torch does not. Raises `ValueError` for damage."""
    if not zipfile.is_zipfile(path):  # torch's format before 1.6 has no checksums
        return
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, OSError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} cannot be read, it may be truncated or damaged: {error}") from None
    if damaged:
        raise ValueError(f"{path} is damaged: the checksum of {damaged} does not match; download or copy it again")


def take(state: StateDict, table: Table) -> tuple[StateDict, list[str], list[str]]:
    """Third-party state dict → ours, and the missing and the unexpected third-party keys."""
    ours, missing = {}, []
    for name, place in table.items():
        tensor = state.get(place.key)
        if tensor is None:
            missing.append(place.key)
        else:
            ours[name] = tensor.chunk(place.parts)[place.part] if place.parts > 1 else tensor
    used = {place.key for place in table.values()}
    return ours, sorted(set(missing)), sorted(set(state) - used)


def give(ours: StateDict, table: Table) -> StateDict:
    """Our state dict → a third-party one; parts are concatenated."""
    parts: dict[str, list[Tensor]] = {}
    for name, place in sorted(table.items(), key=lambda item: item[1].part):
        parts.setdefault(place.key, []).append(ours[name])
    return {key: torch.cat(tensors) if len(tensors) > 1 else tensors[0].clone() for key, tensors in parts.items()}


def require_fit(
    what: str, expected: StateDict, ours: StateDict, missing: list[str], unexpected: list[str], keys: Table
) -> None:
    """Raise one `ValueError` that lists missing, unexpected and mis-shaped keys, if there are any.

    Args:
        expected: tensors of the required shapes, by our names.
    """
    shapes = [
        f"{keys[name].key} {tuple(tensor.shape)}, the configuration has {tuple(expected[name].shape)}"
        for name, tensor in ours.items()
        if tensor.shape != expected[name].shape
    ]
    groups = {"missing": missing, "unexpected": unexpected, "mis-shaped": shapes}
    if any(groups.values()):
        lines = [f"{what} does not fit the configuration; nothing was loaded."]
        lines += [f"{group} ({len(names)}): {_abridged(names)}" for group, names in groups.items() if names]
        raise ValueError("\n".join(lines))


def require_all_weights(what: str, model: nn.Module, found: Mapping) -> None:
    """Raise `ValueError` unless a checkpoint had all of the model's weights, no others, and all finite.

    Args:
        found: loading info of `from_pretrained(…, output_loading_info=True)`.
    """
    groups = {
        "missing": [name for name in sorted(found["missing_keys"]) if not name.startswith("criterion.")],
        "unexpected": sorted(found["unexpected_keys"]),
        "mis-shaped": sorted(name for name, *_ in found["mismatched_keys"]),
    }
    wrong = [f"{group} ({len(names)}): {_abridged(names, 3)}" for group, names in groups.items() if names]
    if wrong:
        raise ValueError(f"{what}: the weights do not fit config.json; {'; '.join(wrong)}")
    require_finite(what, model.state_dict())


def require_finite(what: str, state: Mapping[str, Tensor]) -> None:
    """Raise `ValueError` with the names of the first tensors that hold NaN or infinity, if there are any."""
    wrong = [name for name, tensor in state.items() if not tensor.is_meta and not tensor.isfinite().all()]
    if wrong:
        raise ValueError(f"{what} holds NaN or infinite weights ({len(wrong)}): {_abridged(wrong, 3)}")


def _abridged(names: list[str], limit: int = 12) -> str:
    more = f", … and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
