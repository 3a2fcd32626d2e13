"""Load the model, the image processor and the device of a command, and check them before the work starts."""

import re
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import AutoImageProcessor
from transformers.utils import WEIGHTS_NAME, logging

from .auto import MODEL_OF_CONFIG
from .configuration import as_pair
from .configuration.checkpoint import read_beside
from .engines import DTYPES, ENCODER, ExportedEoMT, exported_engines
from .image_processing import EoMTImageProcessor
from .modeling_eomt.pretrained import load_config
from .modeling_eomt.weights.state_dicts import require_all_weights

WEIGHTS = ("*.safetensors", "*.bin", "*.onnx", f"{ENCODER}/*.bin", f"{ENCODER}/*.onnx")


def usable_device(name: str | None) -> torch.device:
    """The device with this name ("cpu", "cuda:1", …). None: the best available, or that of this process in a group.

    Raises:
        ValueError: for a device that torch does not know or the machine does not have.
    """
    if name is None:
        return PartialState().device
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # builds without the device use assert
        reason = str(error).strip().splitlines()[0].split(". ")[0]
        raise ValueError(f"device {name} cannot be used here ({reason}); leave it out or give cpu") from None
    return device


def needs_cpu_group(device: str | None = None) -> bool:
    """Whether a process group runs on the CPU: `device` is "cpu", or there is no accelerator."""
    return device == "cpu" or not torch.accelerator.is_available()


def require_model(name: str) -> None:
    """Raise `ValueError` unless `name` is a folder with a configuration or authors' weights, or can be a hub name."""
    if Path(name).is_dir():
        if not Path(name, "config.json").is_file() and not Path(name, WEIGHTS_NAME).is_file():
            raise ValueError(f"there is no config.json in {name!r}; give a folder of save_pretrained")
    elif Path(name).exists() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) or name.startswith("."):
        raise ValueError(f"there is no model in {name!r}; give a folder of save_pretrained, or a hub name")


def model_files(model: str | Path) -> dict[str, list[int]]:
    """{name: [size, mtime_ns]} of the weights and settings in a folder, to recognize changes. Empty for hub names."""
    patterns = (*WEIGHTS, "config.json", "preprocessor_config.json")
    files = [file for pattern in patterns for file in sorted(Path(model).glob(pattern))]
    return {str(file.relative_to(model)): [file.stat().st_size, file.stat().st_mtime_ns] for file in files}


def load_model(name: str, num_requests: int | None = 1, **options):
    """Load a model from a folder or the hub. For a folder with the file of an engine, an `ExportedEoMT`.

    Args:
        num_requests: images that an exported model computes at the same time (`ExportedEoMT.from_pretrained`).
        options: arguments of `from_pretrained`.

    Raises:
        ValueError: if it is not an EoMT, or if weights are missing, unexpected, of another shape or not finite.
            `from_pretrained` would replace them by random weights, and the results would be wrong without an error.
    """
    require_model(name)
    if exported_engines(name):
        dtype = DTYPES[options.get("dtype") or torch.float32]
        return ExportedEoMT.from_pretrained(name, dtype=None if dtype == "fp32" else dtype, num_requests=num_requests)
    config = load_config(name)
    model_class = MODEL_OF_CONFIG[type(config)]
    _require_weights_of_size(name, model_class, config)
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # otherwise transformers prints a table of misfits; the error below is one line
    try:
        model, found = model_class.from_pretrained(
            name, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    finally:
        logging.set_verbosity(level)
    require_all_weights(name, model, found)
    return model


def _require_weights_of_size(name: str, model_class, config) -> None:
    """Raise `ValueError` if the model of config.json has more parameters than the folder's files have bytes.

    `from_pretrained` would first draw the missing weights at random, and could need all memory for them.
    """
    if getattr(config, "quantization_config", None):  # less than a byte per parameter
        return
    num_bytes = sum(file.stat().st_size for pattern in WEIGHTS for file in Path(name).glob(pattern))
    with torch.device("meta"):
        model = model_class(config)
    elsewhere = ("encoder.",) if getattr(config, "encoder_digest", None) else ()  # PMT's decoder alone
    count = sum(weight.numel() for key, weight in model.named_parameters() if not key.startswith(elsewhere))
    if 0 < num_bytes < count:
        raise ValueError(
            f"{name}: config.json describes a model of {count / 1e6:,.0f} M parameters, but the weights have "
            f"{num_bytes / 1e6:,.0f} MB; both must come from the same checkpoint"
        )


def load_for_inference(
    name: str,
    device: str | None = None,
    *,
    task: str | None = None,
    masked: bool | None = None,
    token_merging: float | None = None,
    merging_layers: tuple[int, int] = (1, 7),
    **options,
):
    """Load a model in evaluation mode onto its device, and its image processor.

    Args:
        task: of the processor; by default the model's.
        masked: masked attention on or off; by default as trained (`config.masked_inference`).
        token_merging: least cosine similarity of tokens that merge (paper, Table 9).
        merging_layers: the two blocks in which tokens merge.
        options: as for `load_model`.

    Raises:
        ValueError: for a model or a device that cannot be used.
    """
    found_device = usable_device(device)  # before the minutes of loading
    model = load_model(name, **options).eval().to(found_device)
    if masked is not None:
        model.set_attn_mask_probs([float(masked)] * model.config.num_blocks)
        if masked and not model.infers_with_masks:
            raise ValueError(f"{name} was trained without masked attention and cannot infer with it")
    if token_merging is not None:
        if not hasattr(model, "set_token_merging"):
            raise ValueError(f"only an EoMT can merge tokens; {name} is a {type(model).__name__}")
        model.set_token_merging(layers=merging_layers, threshold=token_merging)
    return model, load_processor(name, model.config, **({"task": task} if task else {}))


def load_processor(name: str, config, **fields) -> EoMTImageProcessor:
    """The image processor saved with a model. Authors' checkpoints have none; it is then the paper's."""
    if read_beside(name, "config.json") or read_beside(name, "preprocessor_config.json"):
        return AutoImageProcessor.from_pretrained(name, **fields)
    papers = {"size": as_pair(config.image_size), "stuff_label_ids": list(config.stuff_label_ids)}
    return EoMTImageProcessor(**{"task": config.task} | papers | fields)
