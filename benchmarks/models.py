"""Our model and the built-in one with the same random weights."""

import torch
from transformers import EomtConfig, EomtForUniversalSegmentation

from eomt import EoMTConfig, EoMTForUniversalSegmentation


def pair(backbone: str, num_labels: int = 133, image_size: int = 640, num_queries: int = 200):
    """(ours, theirs): same weights, evaluation mode, masking off."""
    torch.manual_seed(0)
    config = EoMTConfig.for_backbone(
        backbone, image_size=image_size, num_labels=num_labels, num_queries=num_queries, layerscale_value=1.0
    )
    ours = EoMTForUniversalSegmentation(config).eval()
    ours.set_attn_mask_probs([0] * config.num_blocks)
    names = set(EomtConfig().to_dict())
    fields = {name: value for name, value in config.to_dict().items() if name in names - {"architectures"}}
    theirs = EomtForUniversalSegmentation(EomtConfig(**fields)).eval()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs
