"""Image files, URLs and base64 text → RGB pictures, turned upright."""

import base64
import os
from io import BytesIO
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from transformers.image_utils import load_image

from .images import to_rgb

URL_TIMEOUT = 30.0
"""Seconds to wait for a response."""
_ORIENTATION = 0x0112  # EXIF
_EXIF_NOTES = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif", "Raw profile type APP1")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(path: str | Path, size: tuple[int, int] | None = None, max_pixels: int | None = None) -> Image.Image:
    """Image file → RGB picture, turned as its EXIF orientation says.

    Args:
        size: (height, width) of the file's annotation. Where the stored picture has it, the annotation was made on
            that, and the picture is not turned.
        max_pixels: larger pictures are refused before they are decoded.

    Raises:
        ValueError: with the path for files that are no image or are cut short.
        OSError: for missing ones.
    """
    try:
        with Image.open(path) as image:
            if max_pixels is not None and image.width * image.height > max_pixels:
                raise ValueError(
                    f"{image.width} × {image.height} pixels need about {12 * image.width * image.height / 1e9:.1f} GB; "
                    f"--max-pixels {image.width * image.height} allows it"
                )
            image.load()
            return as_annotated(image, size)
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read image {str(path)!r}: {error}") from error


def open_image(source, size: tuple[int, int] | None = None, timeout: float = URL_TIMEOUT) -> Image.Image:
    """Path, URL, data URL, base64 text or picture → RGB picture. What is opened here is turned upright (a file: see
    `read_image`); a picture is in its caller's frame and stays in it.

    Raises:
        ValueError: with the path or URL for what cannot be read.
    """
    if isinstance(source, Image.Image):
        return to_rgb(source)
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        try:
            return load_image(source, timeout=timeout)
        except Exception as error:  # Pillow's, or the network library's, which has no common class
            raise ValueError(f"cannot read image {source!r}: {error}") from error
    decoded = _base64(source)
    return read_image(source, size) if decoded is None else to_rgb(upright(decoded))


def _base64(source) -> Image.Image | None:
    if not isinstance(source, str) or (len(source) < 4096 and os.path.exists(source)):
        return None
    try:
        return Image.open(BytesIO(base64.b64decode(source.partition(",")[2] or source)))
    except (ValueError, OSError):
        return None


def as_annotated(image: Image.Image, size: tuple[int, int] | None = None) -> Image.Image:
    """Picture → RGB, turned as its EXIF orientation says, unless it has its annotation's `size` as it is stored."""
    return to_rgb(image if size is not None and image.size == (size[1], size[0]) else upright(image))


def upright(image: Image.Image) -> Image.Image:
    """Picture → turned as its EXIF orientation says."""
    turn = _TURNS.get(orientation(image))
    if turn is None:
        return image
    image = image.transpose(turn)
    for note in _EXIF_NOTES:  # so that nobody turns it again
        image.info.pop(note, None)
    return image


def orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 is upright, as are pictures that say none or whose header is damaged."""
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # Pillow raises half a dozen kinds, its own and struct's, from inside its TIFF reader
        found = 1
    return found if isinstance(found, int) and found in _TURNS else 1


def count_frames(path: str | Path) -> int:
    """How many pictures a file holds (GIF, TIFF, WebP, animated PNG); only the first one is read."""
    try:
        with Image.open(path) as image:
            return int(getattr(image, "n_frames", 1)) if image.format != "MPO" else 1  # a camera's previews
    except Exception:  # reading the picture itself says what is wrong
        return 1


def allow_pixels(count: int) -> None:
    """Let Pillow open pictures of so many pixels in this process; it warns of half of its limit."""
    Image.MAX_IMAGE_PIXELS = max(count, Image.MAX_IMAGE_PIXELS or 0)
