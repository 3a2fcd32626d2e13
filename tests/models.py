"""Small models and inputs for tests."""

import io
import json
from pathlib import Path

import torch
from PIL import Image
from safetensors import safe_open

from eomt import EoMTImageProcessor
from eomt.configuration import EoMTConfig
from eomt.modeling_eomt import EoMTForUniversalSegmentation

GOLDEN = Path(__file__).parent / "golden"

BACKBONE_OF_KIND = {
    "dinov2": "vit_small_patch14_reg4_dinov2",
    "dinov2_swiglu": "vit_giant_patch14_reg4_dinov2",
    "deit3": "deit3_large_patch16_384",
    "dinov3": "vit_small_patch16_dinov3",
    "eva02": "eva02_large_patch14_224",
}
TINY = {"hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "num_blocks": 2, "num_queries": 7}
TINY |= {"num_labels": 5, "image_size": 64, "train_num_points": 256}


def tiny_config(kind: str = "dinov2", **overrides) -> EoMTConfig:
    return EoMTConfig.for_backbone(BACKBONE_OF_KIND[kind], **{**TINY, "layerscale_value": 1.0, **overrides})


def tiny_model(kind: str = "dinov2", seed: int = 0, **overrides) -> EoMTForUniversalSegmentation:
    """A model with random weights in evaluation mode, masking on."""
    torch.manual_seed(seed)
    model = EoMTForUniversalSegmentation(tiny_config(kind, **{"masked_inference": True, **overrides})).eval()
    randomize(model)
    return model


@torch.no_grad()
def randomize(model: torch.nn.Module, std: float = 0.05) -> None:
    """Change every parameter from its initial value, so that a test notices one that is missing."""
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * std)


@torch.no_grad()
def make_confident(model: torch.nn.Module) -> None:
    """Sharpen the logits, so that a random model passes the thresholds."""
    model.class_predictor.weight.mul_(40)
    model.mask_head[-1].weight.mul_(6)


def save_confident(
    folder: Path, kind: str = "dinov2", task: str = "panoptic", masking: float = 0.0, **overrides
) -> Path:
    """Save a model of two layers, one of them masked, and its processor. With seed 11 it finds several segments."""
    small = {"seed": 11, "num_hidden_layers": 2, "num_blocks": 1, "num_queries": 4}
    model = tiny_model(kind, task=task, **{**small, **overrides})
    make_confident(model)
    model.set_attn_mask_probs([masking])
    model.save_pretrained(folder)
    EoMTImageProcessor(task=task, size=64).save_pretrained(folder)
    return folder


def load_unmasked(folder: Path, **overrides) -> EoMTForUniversalSegmentation:
    model = EoMTForUniversalSegmentation.from_pretrained(folder, **overrides).eval()
    model.set_attn_mask_probs([0.0] * model.config.num_blocks)
    return model


def targets(counts=(3, 0), size=(64, 64), num_labels: int = 5, dtype=torch.bool, seed: int = 1):
    """mask_labels and class_labels with the given number of random rectangles for each image."""
    generator = torch.Generator().manual_seed(seed)
    masks, labels = [], []
    for count in counts:
        mask = torch.zeros(count, *size, dtype=dtype)
        for row in mask:
            top, left = (int(torch.randint(0, side // 2, (), generator=generator)) for side in size)
            row[top : top + size[0] // 2, left : left + size[1] // 2] = 1
        masks.append(mask)
        labels.append(torch.randint(0, num_labels, (count,), generator=generator))
    return masks, labels


def turned_png(image: Image.Image, orientation: int = 6) -> bytes:
    """A PNG with an EXIF orientation; 6 is a quarter turn clockwise."""
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    image.save(buffer, "PNG", exif=exif)
    return buffer.getvalue()


def golden_config(kind: str) -> EoMTConfig:
    """The configuration of the golden checkpoint, from its metadata."""
    with safe_open(GOLDEN / f"{kind}.checkpoint.safetensors", "pt") as file:
        meta = file.metadata()
    return EoMTConfig.for_backbone(
        BACKBONE_OF_KIND[kind],
        image_size=tuple(json.loads(meta["img_size"])),
        hidden_size=int(meta["embed_dim"]),
        num_hidden_layers=int(meta["depth"]),
        num_attention_heads=int(meta["num_heads"]),
        num_blocks=int(meta["num_blocks"]),
        num_queries=int(meta["num_queries"]),
        num_labels=int(meta["num_classes"]),
    )
