"""Image files, URLs and base64 text → RGB pictures, turned upright."""

import base64
import os
from io import BytesIO
from pathlib import Path

import httpx
from PIL import Image

from .images import to_rgb

URL_TIMEOUT = 30.0
"""Seconds to wait for a response."""
FORMATS = ("JPEG", "MPO", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM", "JPEG2000", "AVIF")
"""Pillow's readers that are used, whatever a file is called: PostScript, for one, would reach Ghostscript."""
MAX_DOWNLOAD = 1 << 28
"""Bytes of an image from a URL."""
MAX_SCANS = 256
"""Of a progressive JPEG; a photograph has ten. Each is decoded over the whole image."""
MAX_GIF_NOTES = 4096
"""Blocks of a GIF's comments; Pillow's time grows with their square."""
EXTENSION, FRAME = 0x21, 0x2C
"""First bytes of a GIF's parts."""
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
        with open_file(path) as image:
            if max_pixels is not None and image.width * image.height > max_pixels:
                raise ValueError(
                    f"{image.width} × {image.height} pixels need about {12 * image.width * image.height / 1e9:.1f} GB; "
                    f"--max-pixels {image.width * image.height} allows it"
                )
            image.load()
            return as_annotated(image, size)
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except Exception as error:  # Pillow's decoders raise half a dozen kinds for damaged files
        raise ValueError(f"cannot read image {str(path)!r}: {error}") from error


def open_file(source: str | Path | BytesIO) -> Image.Image:
    """Image file or its bytes → Pillow's image, not decoded yet; the only place that opens one.

    Raises:
        OSError: for a format that is not one of `FORMATS`.
        ValueError: for a file whose decoding is not bounded by its pixels.
    """
    Image.init()
    if isinstance(source, BytesIO):
        require_bounded(source.getvalue())
    else:
        with open(source, "rb") as file:
            head = file.read(6)
            if head.startswith((b"\xff\xd8", b"GIF8")):
                require_bounded(head + file.read())
    return Image.open(source, formats=[name for name in FORMATS if name in Image.OPEN])


def require_bounded(data: bytes) -> None:
    """`ValueError` for a JPEG of very many scans, or a GIF of very many notes: small files that take minutes."""
    if data.startswith(b"\xff\xd8") and data.count(b"\xff\xda") > MAX_SCANS:
        raise ValueError(f"it has over {MAX_SCANS} scans; save it again as a baseline JPEG")
    if not data.startswith(b"GIF8") or len(data) < 13:
        return
    notes, at = 0, 13 + _color_table(data[10])
    while at < len(data) and data[at] in (EXTENSION, FRAME):
        is_note = data[at] == EXTENSION
        at += 2 if is_note else 11 + _color_table(data[min(at + 9, len(data) - 1)])
        while at < len(data) and data[at]:  # blocks with their length in front, up to an empty one
            at += data[at] + 1
            notes += is_note
        if notes > MAX_GIF_NOTES:
            raise ValueError(f"it has over {MAX_GIF_NOTES} blocks of notes; save it again without them")
        at += 1


def _color_table(flags: int) -> int:
    """Bytes of a GIF's color table."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


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
            return to_rgb(upright(open_file(BytesIO(_download(source, timeout)))))
        except Exception as error:  # Pillow's, or the network library's, which has no common class
            raise ValueError(f"cannot read image {source!r}: {error}") from error
    decoded = _base64(source)
    return read_image(source, size) if decoded is None else to_rgb(upright(decoded))


def _download(url: str, timeout: float) -> bytes:
    """`ValueError` for more than `MAX_DOWNLOAD` bytes, before they fill the memory."""
    data = bytearray()
    with httpx.stream("GET", url, timeout=timeout, follow_redirects=True) as response:
        response.raise_for_status()
        for part in response.iter_bytes():
            data += part
            if len(data) > MAX_DOWNLOAD:
                raise ValueError(f"it has over {MAX_DOWNLOAD >> 20} MB")
    return bytes(data)


def _base64(source) -> Image.Image | None:
    if not isinstance(source, str) or (len(source) < 4096 and os.path.exists(source)):
        return None
    try:
        return open_file(BytesIO(base64.b64decode(source.partition(",")[2] or source)))
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


def is_animated(path: str | Path) -> bool:
    """Whether a file holds several frames (GIF, TIFF, WebP, animated PNG); only the first one is read."""
    try:
        with open_file(path) as image:
            return image.format != "MPO" and getattr(image, "is_animated", False)  # a camera's previews
    except Exception:  # reading the image itself reports the error
        return False


def allow_pixels(count: int) -> None:
    """Let Pillow open pictures of so many pixels in this process; it warns of half of its limit."""
    Image.MAX_IMAGE_PIXELS = max(count, Image.MAX_IMAGE_PIXELS or 0)
