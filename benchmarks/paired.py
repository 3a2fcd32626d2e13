"""Our model and the built-in one with the same weights, timed in turn."""

import statistics
import time
from collections.abc import Callable

import torch
from transformers import EomtConfig, EomtForUniversalSegmentation

from eomt import EoMTConfig, EoMTForUniversalSegmentation

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def model_pair(backbone: str, image_size: int = 640, num_labels: int = 133, num_queries: int = 200):
    """Our model and the built-in one: the same random weights, in evaluation mode, without masked attention."""
    torch.manual_seed(0)
    config = EoMTConfig.for_backbone(
        backbone, image_size=image_size, num_labels=num_labels, num_queries=num_queries, layerscale_value=1.0
    )
    ours = EoMTForUniversalSegmentation(config).eval()
    ours.set_attn_mask_probs([0] * config.num_blocks)
    theirs = built_in(config)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def built_in(config: EoMTConfig) -> EomtForUniversalSegmentation:
    """The built-in model of a configuration: random weights, in evaluation mode, without masked attention."""
    names = set(EomtConfig().to_dict())
    fields = {name: value for name, value in config.to_dict().items() if name in names - {"architectures"}}
    model = EomtForUniversalSegmentation(EomtConfig(**fields)).eval()
    model.attn_mask_probs.fill_(0)
    return model


def seconds(run: Callable) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def paired_seconds(ours: Callable, theirs: Callable, repeats: int) -> tuple[float, float, float]:
    """Median seconds of both, and the median of the ratios theirs / ours.

    They run in turn, so that the load of the machine is the same for both, after one untimed run of each.
    """
    ours()
    theirs()
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(repeats)]
    fast, slow = zip(*pairs)
    return statistics.median(fast), statistics.median(slow), statistics.median(b / a for a, b in pairs)
