"""Images and label PNGs, read from a location (files.py) or from a PIL image of the `datasets` library."""

from contextlib import suppress

import numpy as np
from PIL import Image
from torch import Tensor

from ...image_processing.bands import read_bands
from ...image_processing.images import as_annotated, decode_image, image_size, picture_ids, to_rgb_tensor
from .files import read_bytes


def read_image(location: str | Image.Image, size: tuple[int, int] | None = None, channels: int | None = 3) -> Tensor:
    """An image as a tensor (channels, H, W) of uint8, or float32 for more than 8 bits in channels other than RGB.

    Args:
        location: location or PIL image.
        size: (H, W) of the annotation. An RGB image is rotated by its EXIF orientation, unless only the stored image
            has this size.
        channels: number of channels in a file; 3 is RGB, None RGB or else any. PIL images are read as RGB.
    """
    if channels is None:
        with suppress(ValueError):
            return read_image(location, size)
    if not isinstance(location, Image.Image) and (channels != 3 or location.endswith(".npy")):
        return read_bands(read_bytes(location), channels, location)
    return to_rgb_tensor(as_annotated(_stored_image(location), size)).contiguous()


def read_map(location: str) -> np.ndarray:
    """The ids of a PNG, int32 (H, W): palette indices, or COCO panoptic ids of an RGB image."""
    return picture_ids(_stored_image(location))


def read_colors(location: str) -> np.ndarray:
    """The colors of a PNG, int32 (H, W): R + 256 G + 65536 B."""
    image = _stored_image(location)
    return picture_ids(image.convert("RGB") if image.mode in ("P", "L", "1", "LA", "PA") else image)


def read_classes(location: str) -> np.ndarray:
    """The classes of a PNG, int32 (H, W): palette indices, or gray values of an RGB image."""
    image = _stored_image(location)
    if image.mode in ("RGB", "RGBA"):
        red, green, blue, *_ = image.split()
        if red.tobytes() != green.tobytes() or red.tobytes() != blue.tobytes():
            raise ValueError(
                "its label image is in color; add class_dict.csv with a line name,r,g,b per class to the data folder, "
                "or save class numbers in one channel"
            )
        image = red
    return picture_ids(image)


def size_of(location: str) -> tuple[int, int]:
    """(H, W) of the upright image, from its header. Raises `ValueError` with the location for unreadable images."""
    try:
        if location.endswith(".npy"):
            return tuple(read_bands(read_bytes(location), None, location).shape[1:])
        return image_size(read_bytes(location) if "://" in location else location)
    except (ValueError, OSError) as error:
        raise ValueError(f"{location}: {error}") from None


def _stored_image(location: str | Image.Image) -> Image.Image:
    """The decoded image. Raises `ValueError` for a missing, unreadable, truncated or oversized image."""
    if isinstance(location, Image.Image):
        return location
    try:
        return decode_image(read_bytes(location))
    except FileNotFoundError:
        raise ValueError(f"there is no file {location}") from None
    except (OSError, MemoryError) as error:
        raise ValueError(str(error) or "too large for memory") from None
