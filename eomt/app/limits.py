"""What a visitor may ask of the server, and the one way in for uploaded files."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..image_processing.reading import allow_pixels, read_image


@dataclass(frozen=True, kw_only=True)
class Limits:
    """As `eomt serve --help` has them."""

    upload_megabytes: int = 50
    max_pixels: int = 50_000_000
    "Larger pictures are refused before they are decoded: a file of a few KB may hold gigapixels."
    requests: int = 2
    "Segmented at once; others wait."
    waiting: int = 32
    "Requests that wait; further ones are told that the server is busy."


def open_upload(path: str | Path, limits: Limits) -> Image.Image:
    """An uploaded file → RGB picture, turned upright.

    Raises:
        ValueError: one line that names the file as its visitor knows it, for whatever is not a picture, is cut short or
            is too large.
    """
    path = Path(path)
    allow_pixels(limits.max_pixels)
    try:
        return read_image(path, max_pixels=limits.max_pixels)
    except (ValueError, OSError, MemoryError) as error:
        reason = str(error).replace(str(path), path.name) or type(error).__name__
        raise ValueError(" ".join(reason.split())) from None
