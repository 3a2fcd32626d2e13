"""Image → tokens.

B images · P prefix tokens (class, registers) · N patches · D width · C channels · H, W pixels
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from ..configuration import EoMTConfig, as_pair
from .resample import resample_patch_kernel, resample_positions, spread_channels


class PositionEmbeddings(nn.Embedding):
    """Learned positions, resampled to a patch grid: (prefix + N, D). A module, for offloading hooks on `forward`."""

    def forward(self, old: tuple[int, int], new: tuple[int, int], num_prefix: int) -> Tensor:
        return resample_positions(self.weight, old, new, num_prefix)


class Embeddings(nn.Module):
    """Image to tokens: (B, C, H, W) → (B, P + N, D), for any H and W that the patch size divides.

    Learned positions are resampled for an image of another size than the configuration's.
    """

    def __init__(self, config: EoMTConfig):
        super().__init__()
        self.config = config
        width, patch_size = config.hidden_size, as_pair(config.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        registers = torch.zeros(1, config.num_register_tokens, width)
        if config.num_register_tokens:
            self.register_tokens = nn.Parameter(registers)
        else:  # the hub's checkpoints have the empty tensor; as a parameter, FSDP could not shard it
            self.register_buffer("register_tokens", registers)
        projection = nn.Conv2d(config.num_channels, width, kernel_size=patch_size, stride=patch_size)
        if config.layout.patch_projection_name is not None:  # the hub's key has another level
            projection = nn.Sequential(OrderedDict({config.layout.patch_projection_name: projection}))
        self.patch_embeddings = projection
        if config.layout.has_position_embeddings:
            rows = config.grid_size[0] * config.grid_size[1] + self._num_prefix_positions
            self.position_embeddings = PositionEmbeddings(rows, width)
        else:
            self.position_embeddings = None

    @property
    def _num_prefix_positions(self) -> int:
        return 1 if self.config.layout.class_token_has_position else 0

    @property
    def projection(self) -> nn.Conv2d:
        """The patch kernel, under the hub's name."""
        name = self.config.layout.patch_projection_name
        return self.patch_embeddings if name is None else getattr(self.patch_embeddings, name)

    def forward(self, pixel_values: Tensor) -> Tensor:
        patches = self.patch_embeddings(pixel_values.to(self.cls_token.dtype))
        grid = tuple(patches.shape[-2:])
        patches = patches.flatten(2).transpose(1, 2)  # [B, N, D]
        cls_token = self.cls_token
        if self.position_embeddings is not None:
            count = self._num_prefix_positions
            positions = self.position_embeddings(self.config.grid_size, grid, count)
            patches = patches + positions[count:]
            if count:
                cls_token = cls_token + positions[:count]
        prefix = torch.cat([cls_token, self.register_tokens], dim=1).expand(patches.shape[0], -1, -1)
        tokens = torch.cat([prefix, patches], dim=1)  # [B, P + N, D]
        return nn.functional.dropout(tokens, self.config.hidden_dropout_prob, self.training)

    def resize(self, image_size, patch_size) -> None:
        """Resample positions and patch kernels to another image and patch size, also in the configuration, and spread
        kernels of RGB over its channels."""
        old = self.config.grid_size
        sizes = [as_pair(self.config.image_size), as_pair(self.config.patch_size), self.projection.in_channels]
        wanted = [as_pair(image_size), as_pair(patch_size), self.config.num_channels]
        if sizes != wanted and any(p.is_meta for p in self.parameters()):
            raise ValueError(
                f"image_size {image_size} cannot be set while the embeddings are offloaded; load the model without a "
                "device_map, save it at that size, and load that"
            )
        self.config.image_size, self.config.patch_size = image_size, patch_size
        self.config.check_fields()
        if self.config.num_channels != self.projection.in_channels:
            self.projection.weight = nn.Parameter(spread_channels(self.projection.weight, self.config.num_channels))
            self.projection.in_channels = self.config.num_channels
        if as_pair(patch_size) != self.projection.kernel_size:
            self.projection.weight = nn.Parameter(resample_patch_kernel(self.projection.weight, as_pair(patch_size)))
            self.projection.kernel_size = self.projection.stride = as_pair(patch_size)
        if self.position_embeddings is not None and old != self.config.grid_size:
            weight = self.position_embeddings(old, self.config.grid_size, self._num_prefix_positions)
            self.position_embeddings.weight = nn.Parameter(weight)
            self.position_embeddings.num_embeddings = len(weight)
