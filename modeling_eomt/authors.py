"""The authors' checkpoints ↔ our models (authors' repository `tue-mps/eomt`; keys `network.*`)."""

import torch
from torch import Tensor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.utils import logging

from ..configuration import EoMTConfig
from ..configuration.pmt import PMTConfig
from .eomt import EoMTForUniversalSegmentation
from .pmt import PMTForUniversalSegmentation, encoder_state
from .weights.backbones import delta_reference, fit_sizes
from .weights.key_maps import authors_table
from .weights.state_dicts import StateDict, give, read_state_dict, require_fit, take

logger = logging.get_logger(__name__)

NOT_OURS = ("network.encoder.pixel_mean", "network.encoder.pixel_std", "criterion.empty_weight")


def load_authors_checkpoint(
    path_or_state_dict, config: EoMTConfig, reference_backbone=None, load_class_head: bool = True
) -> EoMTForUniversalSegmentation:
    """An authors' checkpoint → a model with the same logits, in evaluation mode.

    Args:
        path_or_state_dict: `.bin`, `.ckpt`, `.safetensors`, a directory that holds one, or the state dict.
        config: of the same shapes; learned positions are resampled where only the image size differs. With a
            `PMTConfig`, the file may hold the decoder alone; `reference_backbone`, or else `config.encoder_name`, is
            the encoder then, as in `PMTForUniversalSegmentation.load_encoder`.
        reference_backbone: DINOv3 weights (state dict, model or path) when the file holds deltas to them: encoder
            parameters are added to the reference, heads are absolute, buffers are overwritten.
        load_class_head: False leaves the class head at its fresh initialization, for other classes.

    Raises:
        ValueError: when keys are missing, unexpected or mis-shaped, listed in groups, or when there is a reference for
            weights that are no deltas; nothing is loaded then.
    """
    state = {
        key: tensor for key, tensor in read_state_dict(path_or_state_dict).items() if key != "criterion.empty_weight"
    }
    table = authors_table(config)
    encoder = None
    if isinstance(config, PMTConfig) and not any(key.startswith("network.encoder.backbone.") for key in state):
        encoder, reference_backbone = reference_backbone or config.encoder_name, None
        table = {ours: place for ours, place in table.items() if not ours.startswith("encoder.")}
    if not load_class_head:
        state = {key: t for key, t in state.items() if "class_head" not in key and "class_predictor" not in key}
        table = {ours: place for ours, place in table.items() if not ours.startswith("class_predictor")}
    ours, missing, unexpected = take(state, table)
    unexpected = [key for key in unexpected if key not in NOT_OURS]
    buffers_are_deltas = reference_backbone is not None and not _pixel_mean(state).any()
    if isinstance(config, PMTConfig):
        model = PMTForUniversalSegmentation(config).eval()
        fitted = fit_sizes(encoder_state(ours), config.encoder_config)
        ours |= {f"encoder.{name}": tensor for name, tensor in fitted.items()}
    else:
        model = EoMTForUniversalSegmentation(config).eval()
        ours = fit_sizes(ours, config)
    require_fit("the checkpoint", model, ours, missing, unexpected, table)
    if encoder is not None:
        model.load_encoder(encoder)
    if reference_backbone is not None:
        reference = {name: tensor.float() for name, tensor in delta_reference(reference_backbone, config).items()}
        encoder = {name: ours[name].float() for name in reference}
        to_reference = sum((encoder[name] - tensor).square().sum() for name, tensor in reference.items())
        if to_reference < sum(tensor.square().sum() for tensor in encoder.values()):  # deltas are closer to zero
            raise ValueError("the checkpoint holds whole weights, not deltas to a reference backbone; leave that out")
        for name, tensor in reference.items():
            ours[name] = encoder[name] + tensor
        if buffers_are_deltas:  # relative to a fresh model's, which are one
            ours["attn_mask_probs"] = ours["attn_mask_probs"] + 1
        ours["attn_mask_probs"] = ours["attn_mask_probs"].clamp(0, 1)
    elif not torch.allclose(_pixel_mean(state), torch.tensor(IMAGENET_DEFAULT_MEAN), atol=1e-4):
        logger.warning(
            f"the checkpoint normalizes by mean {_pixel_mean(state).tolist()}; give the image processor the same"
        )
    model.load_state_dict(ours, strict=False)
    if not load_class_head:
        logger.warning(f"the class head was not loaded: it is initialized for {config.num_labels} labels, train it")
    return model


def convert_to_authors(model: EoMTForUniversalSegmentation, delta_from=None) -> StateDict:
    """A model → the authors' state dict, keys `network.*`.

    Args:
        delta_from: DINOv3 weights (state dict, model or path): the encoder is written relative to them, and buffers
            relative to a fresh model's, as the authors' loader sums them.
    """
    ours = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    if delta_from is not None:
        for name, tensor in delta_reference(delta_from, model.config).items():
            ours[name] = ours[name].float() - tensor.float()
        ours["attn_mask_probs"] = ours["attn_mask_probs"] - 1
        mean, std = torch.zeros_like(mean), torch.zeros_like(std)
    for name in ("embeddings.position_embeddings.weight", "encoder.embeddings.position_embeddings.weight"):
        if name in ours:
            ours[name] = ours[name][None]
    state = give(ours, authors_table(model.config))
    return state | {"network.encoder.pixel_mean": mean, "network.encoder.pixel_std": std}


def _pixel_mean(state: StateDict) -> Tensor:
    return state.get("network.encoder.pixel_mean", torch.tensor(IMAGENET_DEFAULT_MEAN)).flatten().float()
