"""Images of other channels than RGB, for example of satellites and microscopes, as uint8 or float32.

Values are from 0 to 255: those of 16 bits are divided by 257, and fractions multiplied by 255.
"""

import os
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .images import MAX_BYTES, as_tensor, decode_image, open_image, scaled_to_255, upright

MAX_CHANNELS = 16


def read_bands(source: str | Path | bytes, channels: int | None = None, name: str | None = None) -> Tensor:
    """An image file, or its bytes → (C, H, W). NPY and TIFF files have up to 16 channels.

    Args:
        channels: the required number C; by default any.
        name: file name, for bytes. Its suffix decides how they are read.

    Raises:
        ValueError: with the name, for another number of channels and for unreadable files.
        OSError: for missing files.
    """
    name = str(source) if name is None else name
    suffix = Path(name).suffix.lower()
    if not isinstance(source, bytes) and os.path.getsize(source) > MAX_BYTES:
        raise ValueError(f"{name} is larger than the limit of {MAX_BYTES} bytes")
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    try:
        if suffix == ".npy":
            image = np.load(BytesIO(data), allow_pickle=False)
        elif suffix in (".tif", ".tiff"):
            image = _read_tiff(data)
        else:
            image = upright(decode_image(data))
        return to_bands(image, channels)
    except ImportError:
        raise ValueError(f"{name} needs tifffile: pip install '.[rasters]' in the checkout") from None
    except Exception as error:  # tifffile has many errors for damaged files
        if isinstance(error, MemoryError):
            raise
        raise ValueError(f"cannot read image {name!r}: {error}") from error


def open_any(source, channels: int = 3, **options):
    """`open_image` for RGB, with its options; `read_bands` for other channels and for NPY."""
    if channels == 3 and not str(source).lower().endswith(".npy"):
        return open_image(source, **options)
    return read_bands(source, channels)


def _read_tiff(data: bytes) -> np.ndarray:
    import tifffile

    with tifffile.TiffFile(BytesIO(data)) as file:
        size = file.series[0].nbytes
        if size > MAX_BYTES:
            raise ValueError(f"its pixels have {size} bytes, more than the limit of {MAX_BYTES}")
        return file.asarray()


def to_bands(image, channels: int | None = None, data_format=None, has_fractions: bool = True) -> Tensor:
    """A PIL image, array or tensor of (H, W), (H, W, C) or (C, H, W) → (C, H, W), uint8 or float32; RGB uint8.

    Args:
        channels: the required number C.
        data_format: "channels_first" or "channels_last"; by default inferred (`has_channels_last`).
        has_fractions: whether floats are fractions of 1, or from 0 to 255. If False, they are left as they are.
    """
    if isinstance(image, Image.Image):
        if image.mode == "P":
            image = image.convert("RGB")
        image, data_format = np.array(image), "channels_last"
    pixels = as_tensor(image)
    if pixels.ndim == 2:
        pixels, data_format = pixels[None], "channels_first"
    if pixels.ndim != 3:
        raise ValueError(f"its shape is {tuple(pixels.shape)}; give (H, W), (H, W, C) or (C, H, W)")
    if data_format is None:
        is_last = has_channels_last(pixels.shape, channels)
    else:
        is_last = str(getattr(data_format, "value", data_format)) == "channels_last"
    pixels = pixels.permute(2, 0, 1) if is_last else pixels
    if channels is not None and len(pixels) != channels:
        raise ValueError(f"it has {len(pixels)} channels; the model takes {channels}")
    if len(pixels) > MAX_CHANNELS and channels is None:
        raise ValueError(f"it has {len(pixels)} channels; at most {MAX_CHANNELS} are read")
    if pixels.dtype == torch.uint8:
        return pixels.contiguous()
    if pixels.is_floating_point() and not has_fractions:
        return pixels.float().contiguous()
    if pixels.is_floating_point() or pixels.dtype == torch.bool:
        pixels = scaled_to_255(torch.nan_to_num(pixels.float()))
    elif pixels.dtype == torch.uint16 or bool((pixels > 255).any()):
        pixels = pixels.float() / 257
    pixels = pixels.float().clamp(0, 255)
    return (pixels.round().to(torch.uint8) if channels == 3 else pixels).contiguous()


def has_channels_last(shape: tuple[int, int, int], channels: int | None) -> bool:
    """Whether the last dimension holds the channels: the one of this size, else the shorter of the first and last."""
    first, _, last = shape
    return last == channels if channels in (first, last) else last < first


def picture_of(bands) -> Image.Image:
    """An array or tensor (C, H, W) → an RGB image of the first three bands, or a gray one of the first."""
    bands = torch.as_tensor(bands)
    shown = bands[:3] if len(bands) >= 3 else bands[:1].expand(3, -1, -1)
    return Image.fromarray(shown.round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy())
