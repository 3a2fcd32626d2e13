"""Images and label pngs at a location; errors name the file."""

import io

import numpy as np
import torch
from PIL import Image

from ...image_processing.images import to_rgb_tensor
from ...image_processing.maps import picture_ids
from ...image_processing.reading import as_annotated, open_file, orientation
from .files import read_bytes


def open_image(location: str, name: str) -> Image.Image:
    """A decoded PIL image; `ValueError` naming the file where it is missing, unreadable or truncated."""
    try:
        image = open_file(io.BytesIO(read_bytes(location)))
        image.load()
    except Exception as error:  # what Pillow's decoders raise for damaged files has no common class
        reason = "no such file" if isinstance(error, FileNotFoundError) else f"unreadable image ({error})"
        raise ValueError(f"{name}: {reason}; fix or remove it") from None
    return image


def read_image(location: str, name: str, size: tuple[int, int] | None = None) -> torch.Tensor:
    """An RGB image: uint8 (3, H, W), turned as its EXIF orientation says.

    size: (H, W) of its annotation. Where the stored image has it, the annotation is for that: no rotation.
    """
    return to_rgb_tensor(as_annotated(open_image(location, name), size)).contiguous()


def read_map(location: str, name: str) -> np.ndarray:
    """A label png: int32 (H, W). Palette images give their indices; RGB ones are read as COCO panoptic ids."""
    return _map(open_image(location, name), name)


def read_classes(location: str, name: str, colors: bool = False) -> np.ndarray:
    """A png of classes: int32 (H, W). Palette images give their indices, RGB ones their gray value.

    colors: classes are colors, and come as R + 256 G + 65536 B.
    """
    image = open_image(location, name)
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


def image_size(location: str, name: str) -> tuple[int, int]:
    """(H, W) of the upright image out of its header, without decoding it."""
    try:
        source = io.BytesIO(read_bytes(location)) if location.startswith("zip://") else location
        with open_file(source) as image:
            turned = orientation(image) > 4  # a quarter to the left or right
            return (image.width, image.height) if turned else (image.height, image.width)
    except Exception as error:  # see open_image
        raise ValueError(f"{name}: unreadable image ({error}); fix or remove it") from None


def distinct_values(ids: np.ndarray) -> list[int]:
    """The distinct values of a map, ascending. Only where a run starts is looked at: maps are piecewise constant."""
    flat = ids.ravel()
    if not flat.size:
        return []
    starts = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    return np.unique(np.append(flat[starts], flat[0])).tolist()
