"""Images and label pngs at a location (files.py), or as PIL has them in a column of the `datasets` library."""

import numpy as np
import torch
from PIL import Image

from ...image_processing.bands import read_bands
from ...image_processing.images import as_annotated, decode_image, image_size, picture_ids, to_rgb_tensor
from .files import read_bytes


def read_image(location: str | Image.Image, size: tuple[int, int] | None = None, channels: int = 3) -> torch.Tensor:
    """An image: (channels, H, W), uint8, or float32 where it has other channels than RGB and more than 8 bits.

    An RGB image is turned as its EXIF orientation says.

    size: (H, W) of its annotation. Where the stored image has it, the annotation is for that: no rotation.
    """
    if not isinstance(location, Image.Image) and (channels != 3 or location.endswith(".npy")):
        bands = read_bands(read_bytes(location), channels, location)
        return bands if channels != 3 else bands.round().to(torch.uint8)
    return to_rgb_tensor(as_annotated(_stored_image(location), size)).contiguous()


def read_map(location: str) -> np.ndarray:
    """A png of ids: int32 (H, W). Palette images give their indices; RGB ones are read as COCO panoptic ids."""
    return picture_ids(_stored_image(location))


def read_colors(location: str) -> np.ndarray:
    """A png of colors: int32 (H, W), R + 256 G + 65536 B."""
    image = _stored_image(location)
    return picture_ids(image.convert("RGB") if image.mode in ("P", "L", "1", "LA", "PA") else image)


def read_classes(location: str) -> np.ndarray:
    """A png of classes: int32 (H, W). Palette images give their indices, RGB ones their gray value."""
    image = _stored_image(location)
    if image.mode in ("RGB", "RGBA"):
        red, green, blue, *_ = image.split()
        if red.tobytes() != green.tobytes() or red.tobytes() != blue.tobytes():
            raise ValueError(
                "its label image is in color; write class_dict.csv into the data's folder, a line name,r,g,b for each "
                "class, or save the classes' numbers in one channel"
            )
        image = red
    return picture_ids(image)


def size_of(location: str) -> tuple[int, int]:
    """(H, W) of the upright image out of its header, without decoding it; `ValueError` with the location."""
    try:
        if location.endswith(".npy"):
            return tuple(read_bands(read_bytes(location), None, location).shape[1:])
        return image_size(read_bytes(location) if "://" in location else location)
    except (ValueError, OSError) as error:
        raise ValueError(f"{location}: {error}") from None


def _stored_image(location: str | Image.Image) -> Image.Image:
    """A decoded PIL image; `ValueError` where it is missing, unreadable, truncated or too large."""
    if isinstance(location, Image.Image):
        return location
    try:
        return decode_image(read_bytes(location))
    except FileNotFoundError:
        raise ValueError(f"there is no file {location}") from None
    except (OSError, MemoryError) as error:
        raise ValueError(str(error) or "too large for memory") from None
