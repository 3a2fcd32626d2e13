"""Devices and models that several commands take, checked before any work starts."""

import json
import re
from pathlib import Path


def usable_device(name: str | None, option: str = "--device"):
    """ "cpu", "cuda:1", … → the `torch.device`; None: the best there is, in a group of processes this one's.

    Raises:
        ValueError: when torch knows no such device, or this machine has none.
    """
    import torch

    if name is None:
        from accelerate import PartialState

        return PartialState().device
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # a build without the device asserts
        reason = str(error).strip().splitlines()[0].split(". ")[0]
        raise ValueError(f"{option} {name} cannot be used here ({reason}); leave it out or give cpu") from None
    return device


def require_model(name: str) -> None:
    """`ValueError` unless `name` is a complete directory of `save_pretrained`, or may be a name on the hub."""
    if Path(name).is_dir():
        if not Path(name, "config.json").is_file():
            raise ValueError(f"there is no config.json in {name!r}; give a directory that save_pretrained wrote")
        for file in ("config.json", "preprocessor_config.json"):
            if Path(name, file).exists():
                _require_settings(Path(name, file))
        from safetensors import SafetensorError, safe_open

        for file in Path(name).glob("*.safetensors"):
            if not file.is_file():
                raise ValueError(f"{file} is not a file")
            try:
                safe_open(file, "pt")
            except SafetensorError as error:
                raise ValueError(f"{file} cannot be read, it may be truncated: {error}") from None
    elif Path(name).exists() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith((".", "/")):
        raise ValueError(f"there is no model in {name!r}; give a directory that save_pretrained wrote, or a hub name")


def load_config(name: str):
    """The configuration in `name`, which must be an EoMT's or a ladder model's: `ValueError` for others."""
    from transformers import AutoConfig

    from ..configuration import EoMTConfig

    config = AutoConfig.from_pretrained(name)
    if not isinstance(config, EoMTConfig):
        raise ValueError(f"{name} holds a {config.model_type!r} model, not an EoMT")
    return config


def load_model(name: str, num_requests: int | None = 1, **options):
    """The model in `name`, as the Auto classes give it, or an exported one, which computes up to `num_requests` images
    at once (None: as it gains from); options are `from_pretrained`'s.

    Raises:
        ValueError: when it is not an EoMT, or weights are missing, left over, of another shape or not finite.
            `from_pretrained` would draw random ones in their place, and the results would be wrong without an error.
    """
    from .engines import exported_engines

    if exported_engines(name):
        from .exported import ExportedEoMT

        dtype = str(options.get("dtype", "float32")).removeprefix("torch.")
        names = {"float32": None, "bfloat16": "bf16", "float16": "fp16"}  # None: what the file was exported for
        return ExportedEoMT.from_pretrained(name, dtype=names.get(dtype, dtype), num_requests=num_requests)
    from transformers import AutoModelForUniversalSegmentation
    from transformers.utils import logging

    from ..modeling_eomt.weights.fitting import require_all_weights

    load_config(name)
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # transformers' table of what does not fit: the error says it in a line
    try:
        model, found = AutoModelForUniversalSegmentation.from_pretrained(
            name, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    finally:
        logging.set_verbosity(level)
    require_all_weights(name, model, found)
    return model


def load_for_inference(
    name: str, device: str | None = None, option: str = "--device", masked: bool | None = None, **options
):
    """The EoMT in `name` on a device, in evaluation mode.

    Args:
        masked: see `set_inference_masks`.
        options: as for `load_model`.

    Raises:
        ValueError: when there is no such model or device, or it is not an EoMT.
    """
    require_model(name)
    place = usable_device(device, option)
    model = load_model(name, **options)
    set_inference_masks(model, masked)
    return model.eval().to(place)


def set_inference_masks(model, masked: bool | None = None) -> None:
    """Turn masked attention on or off. By default as the paper infers: off for EoMT, whatever was saved; steps 0 to 3
    of the ladder as they were trained."""
    from ..configuration.ladder import LadderConfig

    if masked is not None or not isinstance(model.config, LadderConfig):
        model.set_attn_mask_probs([float(bool(masked))] * model.config.num_blocks)


def merge_tokens(model, threshold: float | None, layers: tuple[int, int] | list[int]) -> None:
    """Turn token merging on where a threshold is given.

    Raises:
        ValueError: when this kind of model cannot merge tokens, or not in these layers.
    """
    if threshold is None:
        return
    if not hasattr(model, "set_token_merging"):
        raise ValueError(f"--token-merging is for EoMT; a {type(model).__name__} cannot")
    try:
        model.set_token_merging(layers=layers, threshold=threshold)
    except ValueError as error:
        raise ValueError(f"--token-merging: {error}") from None


def needs_cpu_group(device: str | None = None) -> bool:
    """Whether a process group runs on the CPU: because `device` says so, or there is no accelerator."""
    import torch

    return device == "cpu" or not torch.accelerator.is_available()


def _require_settings(file: Path) -> None:
    """`ValueError` unless a json holds an object whose entries that transformers reads first are of their types."""
    try:
        content = json.loads(file.read_bytes()) if file.is_file() else None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not a readable json file: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold an object of settings; give a directory that save_pretrained wrote")
    for key in ("model_type", "image_processor_type", "feature_extractor_type", "processor_class"):
        if not isinstance(content.get(key, ""), str | None):
            raise ValueError(f"{file}: {key} is {content[key]!r:.60}; it must be a string")
    names = content.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{file}: architectures is {names!r:.60}; it must be a list of strings")
