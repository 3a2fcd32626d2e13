"""Images larger than the memory, of which parts are read from the file."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from .bands import has_channels_last, open_any, to_bands
from .images import require_pixels

STEP_PIXELS = 2**24  # that are reduced in one step
MAX_CHUNK_BYTES = 2**26  # of a strip or tile of a TIFF: a larger one would be decompressed for each part


@dataclass
class Raster:
    """An image (C, H, W) on the disk."""

    channels: int
    height: int
    width: int
    read: Callable[[slice, slice], Tensor]
    "(rows, columns) → this part of the image (C, h, w), with the values of `read_bands`."

    def reduced(self, factor: int) -> Tensor:
        """Means of blocks of factor × factor pixels, as Pillow's `reduce`: (C, ⌈H / factor⌉, ⌈W / factor⌉)."""
        step = factor * max(1, STEP_PIXELS // (self.width * factor))
        parts = []
        for top in range(0, self.height, step):
            pixels = self.read(slice(top, top + step), slice(0, self.width))
            parts.append(_means(pixels, factor))
        return torch.cat(parts, dim=1)


def open_raster(source, channels: int = 3, max_pixels: int | None = None, **options) -> Image.Image | Raster:
    """`open_any`, but pixels of type uint8 and uint16 in NPY and TIFF files stay on the disk.

    Other types are read at once, because their scale depends on all pixels (`to_bands`). So are TIFFs that only Pillow
    reads, and all TIFFs without tifffile and zarr (the extra `rasters`).

    Raises:
        ValueError: with the name, for another number of channels, more than `max_pixels`, or unreadable files.
    """
    array = _stored(source, channels)
    if array is None:
        image = open_any(source, channels, max_pixels=max_pixels, **options)
        if isinstance(image, Image.Image):
            return image
        return Raster(*image.shape, lambda rows, columns: image[:, rows, columns])
    is_last = array.ndim == 2 or has_channels_last(array.shape, channels)
    height, width = array.shape[:2] if is_last else array.shape[1:]

    def read(rows: slice, columns: slice) -> Tensor:
        try:
            part = np.array(array[rows, columns] if is_last else array[:, rows, columns])
        except Exception as error:  # zarr and the decoders have many errors for damaged files
            raise ValueError(f"cannot read image {str(source)!r}: {error}") from error
        return to_bands(part, channels, "channels_last" if is_last else "channels_first")

    try:
        require_pixels(height, width, max_pixels)
        read(slice(0, 1), slice(0, 1))  # the number of channels
    except ValueError as error:
        raise ValueError(f"cannot read image {str(source)!r}: {error}") from None
    return Raster(channels, height, width, read)


def _stored(source, channels: int):
    """The pixels of a file as an array that reads parts on indexing; None if they must be read at once."""
    suffix = Path(str(source)).suffix.lower()
    array = None
    try:
        if suffix == ".npy" and os.path.isfile(source):
            array = np.load(source, mmap_mode="r", allow_pickle=False)
        elif suffix in (".tif", ".tiff") and os.path.isfile(source):
            array = _stored_tiff(source, channels)
    except Exception:  # `open_any` raises the reason
        return None
    if array is None or array.ndim not in (2, 3) or array.dtype not in (np.uint8, np.uint16):
        return None
    return array


def _stored_tiff(source, channels: int):
    import tifffile
    import zarr

    series = tifffile.TiffFile(source).series[0]
    page = series.keyframe
    is_rgb = page.photometric == tifffile.PHOTOMETRIC.RGB and page.samplesperpixel == 3 and page.bitspersample == 8
    if channels == 3 and not (is_rgb and page.tags.valueof("Orientation", 1) == 1):
        return None  # Pillow converts colors and turns
    if series.dataoffset is not None:  # not compressed
        return tifffile.memmap(source, mode="r")
    array = zarr.open(series.aszarr(level=0), mode="r")
    if np.prod(array.chunks) * array.dtype.itemsize > MAX_CHUNK_BYTES:
        return None
    np.array(array[:1, :1])  # raises without a decoder for its compression, which Pillow may have
    return array


def _means(pixels: Tensor, factor: int) -> Tensor:
    if factor == 1:
        return pixels
    means = F.avg_pool2d(pixels.float(), factor, ceil_mode=True, count_include_pad=False)
    return means if pixels.is_floating_point() else means.round().to(pixels.dtype)
