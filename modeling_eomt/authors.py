"""The authors' checkpoints ↔ our models (authors' repository `tue-mps/eomt`; keys `network.*`)."""

from pathlib import Path

import torch
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.utils import logging

from ..configuration import EoMTConfig
from ..configuration.pmt import PMTConfig
from .eomt import EoMTForUniversalSegmentation
from .pmt import PMTForUniversalSegmentation
from .weights.backbones import delta_reference
from .weights.key_maps import authors_table
from .weights.published import our_tensors
from .weights.state_dicts import StateDict, give, read_config, read_state_dict

logger = logging.get_logger(__name__)


def load_authors_checkpoint(
    path_or_state_dict, config: EoMTConfig, reference_backbone=None, load_class_head: bool = True
) -> EoMTForUniversalSegmentation:
    """An authors' checkpoint as a model with the same logits, in evaluation mode.

    Args:
        path_or_state_dict: `.bin`, `.ckpt`, `.safetensors`, a directory that holds one, or the state dict.
        config: configuration of the same shapes. Learned positions and patch kernels of other sizes are resampled. The
            positions are those of a square image, unless the file was written for another one by `eomt convert`.
        reference_backbone: DINOv3 weights (state dict, model or path) for a checkpoint that holds the encoder as
            differences from them; by default the hub's of the same size. For a checkpoint of PMT's decoder alone, the
            encoder, as in `PMTForUniversalSegmentation.load_encoder`; by default `config.encoder_name`.
        load_class_head: False leaves the class head at its fresh initialization, for other classes.

    Raises:
        ValueError: for missing, unexpected or mis-shaped keys, all listed; for a reference if the checkpoint holds no
            differences; for a reference of the hub that is gated or absent.
    """
    state = read_state_dict(path_or_state_dict)
    encoder = None
    model_class = EoMTForUniversalSegmentation
    if isinstance(config, PMTConfig):
        model_class = PMTForUniversalSegmentation
        if not any(key.startswith("network.encoder.backbone.") for key in state):
            encoder = config.encoder_name if reference_backbone is None else reference_backbone
            reference_backbone = None
        elif reference_backbone is not None:
            raise ValueError("the checkpoint holds PMT's encoder, too; leave reference_backbone out")
    model = model_class(config).eval()
    ours = our_tensors(
        state,
        config,
        reference_backbone,
        expected=model.state_dict(),
        load_class_head=load_class_head,
        load_encoder=encoder is None,
        saved=read_config(path_or_state_dict) if isinstance(path_or_state_dict, str | Path) else None,
    )
    if encoder is not None:
        model.load_encoder(encoder)
    model.load_state_dict(ours, strict=False)
    if not load_class_head:
        logger.warning(f"the class head was not loaded: it is initialized for {config.num_labels} labels, train it")
    return model


def convert_to_authors(model: EoMTForUniversalSegmentation, delta_from=None) -> StateDict:
    """A model as the authors' state dict, keys `network.*`.

    Args:
        delta_from: DINOv3 weights (state dict, model or path). The encoder is written as differences from them, and
            buffers as differences from those of a fresh model: the authors' loader adds both.

    Raises:
        ValueError: for a model of other channels than RGB, which the authors' code does not support.
    """
    if model.config.num_channels != 3:
        raise ValueError(f"the model takes {model.config.num_channels} channels; the authors' code takes RGB only")
    ours = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    if delta_from is not None:
        for name, tensor in delta_reference(delta_from, model.config, ours).items():
            ours[name] = ours[name].float() - tensor.float()
        ours["attn_mask_probs"] = ours["attn_mask_probs"] - 1
        mean, std = torch.zeros_like(mean), torch.zeros_like(std)
    for name in ("embeddings.position_embeddings.weight", "encoder.embeddings.position_embeddings.weight"):
        if name in ours:
            ours[name] = ours[name][None]
    state = give(ours, authors_table(model.config))
    return state | {"network.encoder.pixel_mean": mean, "network.encoder.pixel_std": std}
