"""The convolutional stem of ViT-Adapter: image → features of four scales.

B images · D width · H, W pixels
"""

from torch import Tensor, nn


class SpatialPrior(nn.Module):
    """(B, 3, H, W) → maps (B, D, H/4, W/4), (B, D, H/8, W/8), (B, D, H/16, W/16), (B, D, H/32, W/32)."""

    def __init__(self, stem_width: int, width: int):
        super().__init__()
        self.stem = nn.Sequential(
            *_convolution(3, stem_width, stride=2),
            *_convolution(stem_width, stem_width, stride=1),
            *_convolution(stem_width, stem_width, stride=1),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        self.conv2 = nn.Sequential(*_convolution(stem_width, 2 * stem_width, stride=2))
        self.conv3 = nn.Sequential(*_convolution(2 * stem_width, 4 * stem_width, stride=2))
        self.conv4 = nn.Sequential(*_convolution(4 * stem_width, 4 * stem_width, stride=2))
        self.fc1 = nn.Conv2d(stem_width, width, kernel_size=1)
        self.fc2 = nn.Conv2d(2 * stem_width, width, kernel_size=1)
        self.fc3 = nn.Conv2d(4 * stem_width, width, kernel_size=1)
        self.fc4 = nn.Conv2d(4 * stem_width, width, kernel_size=1)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        c1 = self.stem(pixel_values)
        c2 = self.conv2(c1)
        c3 = self.conv3(c2)
        c4 = self.conv4(c3)
        return self.fc1(c1), self.fc2(c2), self.fc3(c3), self.fc4(c4)


def _convolution(width_in: int, width_out: int, stride: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    convolution = nn.Conv2d(width_in, width_out, kernel_size=3, stride=stride, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(width_out), nn.ReLU()
