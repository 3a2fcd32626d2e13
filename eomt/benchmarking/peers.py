"""The models of other papers in Tables 4 to 6: transformers' own classes with their published architectures.

Mask2Former on Swin-L, OneFormer on ConvNeXt-XL and DiNAT-L. kMaX-DeepLab and MaskDINO have no implementation here or in
transformers.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import (
    ConvNextConfig,
    DinatConfig,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    OneFormerConfig,
    OneFormerForUniversalSegmentation,
    SwinConfig,
)
from transformers.utils import is_natten_available

from .candidates import ONEFORMER_TASK_TOKENS
from .flops import count_flops

STAGES = ["stage1", "stage2", "stage3", "stage4"]
MODELS = {"Mask2Former": Mask2FormerForUniversalSegmentation, "OneFormer": OneFormerForUniversalSegmentation}


@dataclass
class Peer:
    """A model of the tables that is not built on a plain ViT."""

    method: str
    backbone: str
    num_labels: int
    image_size: tuple[int, int]

    def count(self) -> tuple[int, int]:
        """(parameters, multiply-adds of one image at `image_size`), on the meta device.

        Raises:
            ValueError: when the architecture cannot be built here; the message says why.
        """
        meta = torch.device("meta")
        with meta:
            model = self.load(meta)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        with _WithoutValues():
            return parameters, count_flops(model, **self.inputs(1, meta))

    def load(self, device: torch.device, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The model with random weights, ready for inference."""
        return MODELS[self.method](self._config()).eval().to(device, dtype)

    def inputs(self, batch: int, device: torch.device) -> dict[str, Tensor]:
        """Random images (batch, 3, H, W), and OneFormer's task text, of blanks."""
        inputs = {"pixel_values": torch.rand(batch, 3, *self.image_size, device=device)}
        if self.method == "OneFormer":
            inputs["task_inputs"] = torch.zeros(batch, ONEFORMER_TASK_TOKENS, dtype=torch.long, device=device)
        return inputs

    def _config(self):
        if self.method == "Mask2Former":
            return Mask2FormerConfig(backbone_config=self._backbone(), num_queries=200, num_labels=self.num_labels)
        queries = 150 if self.num_labels in (80, 133) else 250  # OneFormer's own: COCO, and ADE20K and Cityscapes
        return OneFormerConfig(
            backbone_config=self._backbone(), num_queries=queries, num_labels=self.num_labels, is_training=False
        )

    def _backbone(self):
        if self.backbone == "Swin-L":
            return SwinConfig(
                embed_dim=192, depths=[2, 2, 18, 2], num_heads=[6, 12, 24, 48], window_size=12, out_features=STAGES
            )
        if self.backbone == "ConvNeXt-XL":
            widths = [256, 512, 1024, 2048]
            return ConvNextConfig(hidden_sizes=widths, depths=[3, 3, 27, 3], out_features=STAGES)
        if not is_natten_available():
            raise ValueError("DiNAT needs the package natten, which is not installed")
        return DinatConfig(
            embed_dim=192, depths=[3, 4, 18, 5], num_heads=[6, 12, 24, 48], kernel_size=11, mlp_ratio=2.0,
            out_features=STAGES, dilations=[[1, 20, 1], [1, 5, 1, 10], [1, 2, 1, 3, 1, 4] * 3, [1, 2, 1, 2, 1]],
        )  # fmt: skip


class _WithoutValues(TorchFunctionMode):
    """What these models ask of values, which meta tensors have not: their checks pass, and no mask is empty."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.where and len(args) == 1 and args[0].is_meta:
            return tuple(torch.empty(0, dtype=torch.long, device="meta") for _ in range(args[0].ndim))
        if func is Tensor.item and args[0].is_meta and args[0].dtype is torch.bool:
            return True
        return func(*args, **(kwargs or {}))
