"""A feature pyramid from the ViT's last patch features (steps 1 to 3): ViTDet's idea with EoMT's scale blocks.

B images · D width · h, w patches down, across
"""

from torch import Tensor, nn

from ...configuration import EoMTConfig
from ..heads import ScaleLayer


class DownConvolution(nn.Conv2d):
    """2×2 convolution of stride 2, channels last: (B, h, w, D) → (B, h/2, w/2, D)."""

    def __init__(self, width: int):
        super().__init__(width, width, kernel_size=2, stride=2)

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class DownscaleLayer(ScaleLayer):
    """`ScaleLayer` with a 2×2 convolution of stride 2 first: (B, h, w, D) → (B, h/2, w/2, D)."""

    def __init__(self, config: EoMTConfig):
        super().__init__(config)
        self.conv1 = DownConvolution(config.hidden_size)


class Pyramid(nn.Module):
    """Patch features (B, h, w, D) → a map (B, D, 16/stride · h, 16/stride · w) for each stride, finest first.

    Stride 4 has two scale blocks, 8 has one, 16 none, and 32 has one downscaling block. No weights are shared.
    """

    def __init__(self, config: EoMTConfig, strides: tuple[int, ...]):
        super().__init__()
        layers = {
            4: lambda: nn.Sequential(ScaleLayer(config), ScaleLayer(config)),
            8: lambda: nn.Sequential(ScaleLayer(config)),
            16: nn.Identity,
            32: lambda: nn.Sequential(DownscaleLayer(config)),
        }
        self.scales = nn.ModuleDict({f"stride{stride}": layers[stride]() for stride in sorted(strides)})

    def forward(self, features: Tensor) -> list[Tensor]:
        return [scale(features).permute(0, 3, 1, 2) for scale in self.scales.values()]
