"""Images and label pngs at a location; errors name the file."""

import numpy as np
import torch
from PIL import Image

from ...image_processing.images import as_annotated, decode_image, image_size, picture_ids, to_rgb_tensor
from .files import read_bytes


def stored_image(location: str, name: str) -> Image.Image:
    """A decoded PIL image; `ValueError` naming the file where it is missing, unreadable or truncated."""
    try:
        return decode_image(read_bytes(location))
    except FileNotFoundError:
        raise ValueError(f"{name}: no such file; fix or remove it") from None
    except (ValueError, OSError, MemoryError) as error:
        raise ValueError(f"{name}: {error or 'too large for memory'}; fix or remove it") from None


def read_image(location: str, name: str, size: tuple[int, int] | None = None) -> torch.Tensor:
    """An RGB image: uint8 (3, H, W), turned as its EXIF orientation says.

    size: (H, W) of its annotation. Where the stored image has it, the annotation is for that: no rotation.
    """
    return to_rgb_tensor(as_annotated(stored_image(location, name), size)).contiguous()


def read_map(location: str, name: str) -> np.ndarray:
    """A label png: int32 (H, W). Palette images give their indices; RGB ones are read as COCO panoptic ids."""
    return _map(stored_image(location, name), name)


def read_classes(location: str, name: str, colors: bool = False) -> np.ndarray:
    """A png of classes: int32 (H, W). Palette images give their indices, RGB ones their gray value.

    colors: classes are colors, and come as R + 256 G + 65536 B.
    """
    image = stored_image(location, name)
    if colors:
        return _map(image.convert("RGB") if image.mode in ("P", "L", "1", "LA", "PA") else image, name)
    if image.mode in ("RGB", "RGBA"):
        red, green, blue, *_ = image.split()
        if red.tobytes() != green.tobytes() or red.tobytes() != blue.tobytes():
            raise ValueError(
                f"{name}: its label image is in color; write class_dict.csv into the data's folder, a line name,r,g,b "
                "for each class, or save the classes' numbers in one channel"
            )
        image = red
    return _map(image, name)


def _map(image: Image.Image, name: str) -> np.ndarray:
    try:
        return picture_ids(image)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def size_of(location: str, name: str) -> tuple[int, int]:
    """(H, W) of the upright image out of its header, without decoding it."""
    try:
        return image_size(read_bytes(location) if "://" in location else location)
    except (ValueError, OSError) as error:
        raise ValueError(f"{name}: {error}; fix or remove it") from None


def distinct_values(ids: np.ndarray) -> list[int]:
    """The distinct values of a map, ascending. Only where a run starts is looked at: maps are piecewise constant."""
    flat = ids.ravel()
    if not flat.size:
        return []
    starts = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    return np.unique(np.append(flat[starts], flat[0])).tolist()
