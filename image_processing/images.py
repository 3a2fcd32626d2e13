"""Whatever a user calls an image → (3, H, W) RGB tensor, uint8 0..255 (float arrays stay float32)."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")


def read_image(path: str | Path) -> Image.Image:
    """Image file → RGB picture, upright.

    Raises `ValueError` with the path for files that are no image or are cut short, `OSError` for missing ones.
    """
    try:
        with Image.open(path) as image:
            return upright_rgb(image)
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read image {str(path)!r}: {error}") from error


def upright_rgb(image: Image.Image) -> Image.Image:
    """Picture of any mode → RGB, turned as its EXIF orientation says.

    16-bit grey values are scaled (PIL's own conversion would clip them at 255). Transparency is dropped, as the
    authors and transformers' pipeline do.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode in _SIXTEEN_BIT or image.mode == "I":
        grey = np.asarray(image).astype(np.int64)
        if image.mode != "I" or grey.max(initial=0) > 255:  # mode I also holds 8-bit values
            grey = (grey.clip(0, 65535) + 128) // 257
        image = Image.fromarray(grey.clip(0, 255).astype(np.uint8))
    elif image.mode == "F":
        image = Image.fromarray(np.nan_to_num(np.asarray(image)).clip(0, 255).round().astype(np.uint8))
    elif image.mode == "RGBa":
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def to_rgb_tensor(image, input_data_format: str | None = None) -> Tensor:
    """PIL image, (H, W), (H, W, C) or (C, H, W) array or tensor with C in 1..4 → (3, H, W) uint8 or float32.

    Args:
        input_data_format: "channels_first" or "channels_last" for arrays; by default the dimension of size 3 (else 1,
            4, 2) holds the channels, the first one where both could.

    Grey is repeated, alpha dropped, 16-bit scaled to 8. Raises `ValueError` for any other shape.
    """
    if isinstance(image, Image.Image):
        return torch.from_numpy(np.array(upright_rgb(image))).permute(2, 0, 1)
    if not isinstance(image, (np.ndarray, Tensor)):
        raise ValueError(
            f"cannot make an image of {type(image).__name__}; give a PIL image, an array, a tensor or a path"
        )
    if isinstance(image, np.ndarray) and image.dtype.kind == "u" and image.dtype.itemsize > 1:
        image = image.astype(np.int64) if image.dtype != np.uint16 else ((image.astype(np.int64) + 128) // 257)
    image = torch.as_tensor(image)
    if image.dtype == torch.uint16:
        image = (image.long() + 128) // 257
    image = _channels_first(image, input_data_format)
    image = image[:3].expand(3, -1, -1) if image.shape[0] not in (2,) else image[:1].expand(3, -1, -1)
    if image.is_floating_point():
        return image.float()
    if image.dtype == torch.uint8:
        return image
    return image.clamp(0, 255).to(torch.uint8) if image.dtype != torch.bool else image.to(torch.uint8) * 255


def _channels_first(image: Tensor, data_format: str | None) -> Tensor:
    shape = tuple(image.shape)
    if image.ndim == 2:
        return image[None]
    if image.ndim == 3:
        if data_format is not None:
            last = str(getattr(data_format, "value", data_format)) == "channels_last"
            return image.permute(2, 0, 1) if last else image
        for channels in (3, 1, 4, 2):  # a 1 × 1 RGB image is (1, 1, 3): three channels, not three columns
            if shape[0] == channels:
                return image
            if shape[2] == channels:
                return image.permute(2, 0, 1)
    raise ValueError(f"cannot make an image of shape {shape}; give (H, W), (H, W, C) or (C, H, W) with C from 1 to 4")


def pillow_resize(image: np.ndarray, size: tuple[int, int], resample) -> np.ndarray:
    """(H, W, 3) uint8 or float32 → (h, w, 3), Pillow's (antialiased) filter."""
    resample = Image.Resampling(int(resample))
    if image.dtype == np.uint8:
        return np.array(Image.fromarray(image).resize(size[::-1], resample))
    planes = [np.asarray(Image.fromarray(image[..., c]).resize(size[::-1], resample)) for c in range(image.shape[-1])]
    return np.stack(planes, -1)


def flatten(images) -> list:
    """One image, a stack of them or (nested) lists → list of images."""
    if isinstance(images, (list, tuple)):
        return [image for item in images for image in flatten(item)]
    if isinstance(images, (np.ndarray, Tensor)) and images.ndim == 4:
        return list(images)
    return [images]
