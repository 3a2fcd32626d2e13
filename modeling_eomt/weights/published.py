"""Read the authors' checkpoints (`tue-mps/eomt`; keys `network.*`) from a file, a folder or the hub.

Checkpoints on DINOv3 hold the encoder as differences from the pre-trained backbone, because its license forbids
publishing it. The backbone is looked up by its size.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN
from transformers.utils import SAFE_WEIGHTS_NAME, WEIGHTS_NAME, cached_file, logging

from ...configuration import EoMTConfig, as_pair
from ...configuration.checkpoint import checkpoint_name
from ...configuration.pmt import PMTConfig
from ...configuration.recipes import RECIPES
from .backbones import delta_reference, fit_sizes
from .inferred_config import config_from_checkpoint
from .key_maps import authors_table
from .state_dicts import StateDict, read_config, read_state_dict, require_fit, take

logger = logging.get_logger(__name__)

PREFIX = "network."
NOT_OURS = ("network.encoder.pixel_mean", "network.encoder.pixel_std")


class Published(NamedTuple):
    """An authors' checkpoint."""

    file: Path
    name: str
    "Name of the repository or folder, without the owner."
    state: StateDict

    def config(self, **given) -> EoMTConfig:
        """Its configuration: the one in the file, if `eomt convert` wrote it, else from the shapes and its recipe.

        Args:
            given: arguments of `config_from_checkpoint`, None for the default.
        """
        given = {name: value for name, value in given.items() if value is not None}
        saved = read_config(self.file)
        recipe = next((row for row in RECIPES.values() if (row.checkpoint or "").endswith(f"/{self.name}")), None)
        if recipe is not None and not saved:
            given = {"image_size": recipe.image_size, "task": recipe.task} | given
        return config_from_checkpoint(self.state, saved=saved, **given)


def read_published(path: str | Path, **hub) -> Published | None:
    """The authors' checkpoint in a file, a folder or a repository of the hub; None if the weights are others.

    Args:
        hub: arguments of `from_pretrained` that locate a repository.
    """
    file = Path(path) if Path(path).is_file() else _weights_file(path, hub)
    if file is None or (file.suffix == ".safetensors" and not _has_authors_keys(file)):
        return None
    published = open_published(file, path)
    return published if any(key.startswith(PREFIX) for key in published.state) else None


def open_published(file: str | Path, path: str | Path | None = None) -> Published:
    """An authors' checkpoint from a file, or a folder that holds one.

    Args:
        path: folder or repository that the checkpoint is named after; by default `file`.
    """
    name = checkpoint_name(str(path or file)).rpartition("--")[2]  # in the hub's cache: models--OWNER--NAME
    return Published(Path(file), name, read_state_dict(file))


def _weights_file(path: str | Path, hub: dict) -> Path | None:
    may_be_missing = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    for name in (SAFE_WEIGHTS_NAME, WEIGHTS_NAME):
        file = cached_file(path, name, **may_be_missing, **hub)
        if file is not None:
            return Path(file)
    return None


def _has_authors_keys(file: Path) -> bool:
    try:
        with safe_open(file, "pt") as opened:
            keys = opened.keys()
    except SafetensorError:  # transformers reports what is wrong with it
        return False
    return any(key.startswith(PREFIX) for key in keys)


def holds_differences(state: StateDict) -> bool:
    """Whether the encoder is written as differences. Its buffers are differences, too: the pixel means are zero."""
    return not _pixel_mean(state).any()


def our_tensors(
    state: StateDict,
    config: EoMTConfig,
    reference_backbone=None,
    *,
    expected: StateDict | None = None,
    load_class_head: bool = True,
    load_encoder: bool = True,
    saved: dict | None = None,
    **hub,
) -> StateDict:
    """The tensors of an authors' state dict under our names; differences are added to their backbone.

    Args:
        reference_backbone: as for `load_authors_checkpoint`; by default, for differences, the hub's of this size.
        expected: tensors of the required shapes; by default those of the state dict.
        load_class_head: False leaves the class head out.
        load_encoder: False for a state dict of PMT's decoder alone.
        saved: the configuration in the file (`read_config`), for the grid of its positions.
        hub: arguments of `from_pretrained` that locate a repository.

    Raises:
        ValueError: as `load_authors_checkpoint`.
    """
    state = {key: tensor for key, tensor in state.items() if key != "criterion.empty_weight"}
    table = authors_table(config)
    if not load_class_head:
        state = {key: t for key, t in state.items() if "class_head" not in key and "class_predictor" not in key}
        table = {name: place for name, place in table.items() if not name.startswith("class_predictor")}
    if not load_encoder:
        table = {name: place for name, place in table.items() if not name.startswith("encoder.")}
    ours, missing, unexpected = take(state, table)
    unexpected = [key for key in unexpected if key not in NOT_OURS]
    prefix, encoder_config = ("encoder.", config.encoder_config) if isinstance(config, PMTConfig) else ("", config)
    encoder = {name.removeprefix(prefix): tensor for name, tensor in ours.items() if name.startswith(prefix)}
    ours |= {f"{prefix}{name}": t for name, t in fit_sizes(encoder, encoder_config, saved_grid(saved or {})).items()}
    require_fit("the checkpoint", ours if expected is None else expected, ours, missing, unexpected, table)
    if reference_backbone is not None or holds_differences(state):
        return _add_reference(ours, state, config, reference_backbone, hub)
    if not torch.allclose(_pixel_mean(state), torch.tensor(IMAGENET_DEFAULT_MEAN), atol=1e-4):
        logger.warning(
            f"the checkpoint normalizes by mean {_pixel_mean(state).tolist()}; give the image processor the same"
        )
    return ours


def saved_grid(config: dict) -> tuple[int, int] | None:
    """Patches (down, across) of a saved configuration; None without one."""
    config = config.get("encoder_config") or config
    if "image_size" not in config or "patch_size" not in config:
        return None
    (height, width), (patch_height, patch_width) = as_pair(config["image_size"]), as_pair(config["patch_size"])
    return height // patch_height, width // patch_width


def _add_reference(ours: StateDict, state: StateDict, config: EoMTConfig, source, hub: dict) -> StateDict:
    reference = delta_reference(source, config, ours, **hub)
    encoder = {name: ours[name].float() for name in reference}
    to_reference = sum((encoder[name] - tensor.float()).square().sum() for name, tensor in reference.items())
    if to_reference < sum(tensor.square().sum() for tensor in encoder.values()):  # differences are closer to zero
        raise ValueError("the checkpoint holds weights, not differences; leave reference_backbone out")
    for name, tensor in reference.items():
        ours[name] = encoder[name] + tensor.float()
    if holds_differences(state):  # of the probabilities to those of a fresh model, which are one
        ours["attn_mask_probs"] = ours["attn_mask_probs"] + 1
    ours["attn_mask_probs"] = ours["attn_mask_probs"].clamp(0, 1)
    return ours


def _pixel_mean(state: StateDict) -> Tensor:
    return state.get("network.encoder.pixel_mean", torch.tensor(IMAGENET_DEFAULT_MEAN)).flatten().float()
