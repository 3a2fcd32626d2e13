"""Whatever a user calls an image → (3, H, W) RGB tensor, uint8 0..255 (float arrays stay float32)."""

import base64
import os
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from transformers.image_utils import load_image

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
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")


def read_image(path: str | Path, size: tuple[int, int] | None = None, max_pixels: int | None = None) -> Image.Image:
    """Image file → RGB picture, turned as its EXIF orientation says.

    Args:
        size: (height, width) of the file's annotation. Where the stored picture has it, the annotation was made on
            that, and the picture is not turned.
        max_pixels: larger pictures are refused before they are decoded.

    Raises `ValueError` with the path for files that are no image or are cut short, `OSError` for missing ones.
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


def allow_pixels(count: int) -> None:
    """Let Pillow open pictures of so many pixels in this process; it warns of half of its limit."""
    Image.MAX_IMAGE_PIXELS = max(count, Image.MAX_IMAGE_PIXELS or 0)


def as_annotated(image: Image.Image, size: tuple[int, int] | None = None) -> Image.Image:
    """Picture → RGB, turned as its EXIF orientation says, unless it has its annotation's `size` as it is stored."""
    return to_rgb(image if size is not None and image.size == (size[1], size[0]) else upright(image))


def open_image(source, size: tuple[int, int] | None = None, timeout: float | None = None) -> Image.Image:
    """Path, URL, data URL, base64 text or picture → RGB picture. What is opened here is turned upright (a file: see
    `read_image`); a picture is in its caller's frame and stays in it."""
    if isinstance(source, Image.Image):
        return to_rgb(source)
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        return load_image(source, timeout=timeout)
    decoded = _base64(source)
    return read_image(source, size) if decoded is None else to_rgb(upright(decoded))


def _base64(source) -> Image.Image | None:
    if not isinstance(source, str) or (len(source) < 4096 and os.path.exists(source)):
        return None
    try:
        return Image.open(BytesIO(base64.b64decode(source.partition(",")[2] or source)))
    except (ValueError, OSError):
        return None


def orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 is upright, as are pictures that say none or whose header is damaged."""
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # Pillow raises half a dozen kinds, its own and struct's, from inside its TIFF reader
        found = 1
    return found if isinstance(found, int) and found in _TURNS else 1


def upright(image: Image.Image) -> Image.Image:
    """Picture → turned as its EXIF orientation says."""
    turn = _TURNS.get(orientation(image))
    if turn is None:
        return image
    image = image.transpose(turn)
    for note in _EXIF_NOTES:  # so that nobody turns it again
        image.info.pop(note, None)
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Picture of any mode → RGB.

    16-bit gray values are scaled (PIL's own conversion would clip them at 255), and so are floats up to 1.
    Transparency is dropped, as the authors and transformers' pipeline do.
    """
    if image.mode in _SIXTEEN_BIT or image.mode == "I":
        gray = np.asarray(image).astype(np.int64)
        if image.mode != "I" or gray.max(initial=0) > 255:  # mode I also holds 8-bit values
            gray = (gray.clip(0, 65535) + 128) // 257
        image = Image.fromarray(gray.clip(0, 255).astype(np.uint8))
    elif image.mode == "F":
        gray = np.nan_to_num(np.asarray(image))
        gray = gray * 255 if gray.max(initial=0) <= 1 else gray
        image = Image.fromarray(gray.clip(0, 255).round().astype(np.uint8))
    elif image.mode == "RGBa":
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def to_rgb_tensor(image, input_data_format: str | None = None) -> Tensor:
    """Image → (3, H, W) uint8 or float32. A PIL image (not turned), or an (H, W), (H, W, C) or (C, H, W) array or
    tensor with C in 1..4.

    Args:
        input_data_format: "channels_first" or "channels_last" for arrays; by default the dimension of size 3 (else 1,
            4, 2) holds the channels, the first one where both could.

    Gray is repeated, alpha dropped, 16-bit scaled to 8. Raises `ValueError` for any other shape.
    """
    if isinstance(image, Image.Image):
        image = to_rgb(image)
        pixels = np.empty((image.height, image.width, 3), np.uint8)
        for top in range(0, image.height, 1024):  # Pillow's conversion takes the memory three times
            pixels[top : top + 1024] = image.crop((0, top, image.width, min(top + 1024, image.height)))
        return torch.from_numpy(pixels).permute(2, 0, 1)
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
    colors = 1 if image.shape[0] == 2 else 3  # of gray with alpha the gray
    image = image[:colors].expand(3, -1, -1)
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


def scaled_to_255(image: Tensor) -> Tensor:
    """Floats in [0, 1], which are scaled already, → 0..255, as the rescaling that follows expects it."""
    if image.is_floating_point() and image.numel() and image.min() >= 0 and image.max() <= 1:
        return image * 255
    return image


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


def count_frames(path: str | Path) -> int:
    """How many pictures a file holds (GIF, TIFF, WebP, animated PNG); only the first one is read."""
    try:
        with Image.open(path) as image:
            return int(getattr(image, "n_frames", 1)) if image.format != "MPO" else 1  # a camera's previews
    except Exception:  # reading the picture itself says what is wrong
        return 1
