"""Read files, bytes, URLs and arrays as RGB images, uint8 (3, H, W) tensors or maps of ids.

Only listed formats are opened, with limits on bytes, scans and comments: hostile files must not start other programs
or occupy a decoder for minutes.
"""

import base64
import importlib.util
import os
import re
from functools import cache
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from huggingface_hub.utils import httpx  # the client of the hub, which transformers also uses
from PIL import Image, UnidentifiedImageError
from torch import Tensor

FORMATS = ("JPEG", "PNG", "BMP", "DIB", "WEBP", "TIFF", "GIF", "PPM", "JPEG2000", "AVIF")
"""Accepted formats, by Pillow's names. Pillow opens forty, among them PostScript, for which it runs Ghostscript."""
URL_TIMEOUT = 30.0  # seconds to wait for a response
MAX_BYTES = 1 << 31  # of a file that is read
MAX_SCANS = 100  # of a progressive JPEG, which is decoded once per scan; ten are usual
MAX_COMMENTS = 4096  # blocks (255 bytes) in a GIF: Pillow joins them in quadratic time
OVERSHOOT = 0.1  # of a float image beyond its range, 0 to 1, after bicubic resampling
_JPEG_MARKER = re.compile(rb"\xff+[\x02-\xcf\xd9-\xfe]", re.DOTALL)  # without restarts and zeros, which are in scans
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
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


def open_image(
    source,
    size: tuple[int, int] | None = None,
    timeout: float = URL_TIMEOUT,
    max_pixels: int | None = None,
    kept: str | None = None,
) -> Image.Image:
    """Open a path, URL, data URL or base64 text as an upright RGB image; convert a PIL image to RGB without turning it.

    `size` (for files only) and `max_pixels` are those of `read_image`. `timeout` is in seconds. `kept` is a folder in
    which the file of a URL stays until it is opened again: a second download can be another image.

    Raises:
        ValueError: with the path or URL, if it cannot be read.
    """
    if isinstance(source, Image.Image):
        return to_rgb(source)
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        try:
            return as_annotated(decode_image(_downloaded(source, timeout, kept), max_pixels))
        except (ValueError, httpx.HTTPError, httpx.InvalidURL) as error:
            raise ValueError(f"cannot read image {source!r}: {error}") from error
    if isinstance(source, str) and not (len(source) < 4096 and os.path.exists(source)):
        try:
            return as_annotated(decode_image(base64.b64decode(source.partition(",")[2] or source), max_pixels))
        except ValueError:  # not an image in base64, so the path of a missing file
            pass
    return read_image(source, size, max_pixels)


def read_image(path: str | Path, size: tuple[int, int] | None = None, max_pixels: int | None = None) -> Image.Image:
    """Read an image file as RGB, turned by its EXIF orientation.

    Args:
        size: (height, width) of the ground truth. If only the stored image has this size, it is not turned.
        max_pixels: limit on height × width, checked before decoding, instead of Pillow's limit.

    Raises:
        ValueError: with the path, for files that are not images or are truncated.
        OSError: for missing files.
    """
    try:
        return as_annotated(decode_image(path, max_pixels), size)
    except (ValueError, OSError) as error:
        if isinstance(error, (FileNotFoundError, PermissionError, IsADirectoryError)):
            raise
        raise ValueError(f"cannot read image {str(path)!r}: {error}") from error


def decode_image(source: str | Path | bytes, max_pixels: int | None = None) -> Image.Image:
    """Decode an image file, or its bytes, without turning or converting it.

    Raises:
        ValueError: with the reason, for another format than `FORMATS`, damaged files, and files beyond the limits.
        OSError: for files that cannot be opened.
    """
    if isinstance(source, bytes):
        data = source
    else:
        size = os.path.getsize(source)
        if size > MAX_BYTES:
            raise ValueError(f"{size} bytes are more than the limit of {MAX_BYTES}")
        data = Path(source).read_bytes()
    if data.count(b"\xff\xda") > MAX_SCANS:
        _require_few_scans(data)
    if max_pixels is not None:
        Image.MAX_IMAGE_PIXELS = max(max_pixels, Image.MAX_IMAGE_PIXELS or 0)  # Pillow warns above it, refuses twice it
    with _open(BytesIO(data)) as image:
        require_pixels(image.height, image.width, max_pixels)
        try:
            image.load()
        except MemoryError:
            raise
        except Exception as error:  # Pillow's decoders have no common error for damaged files
            raise ValueError(f"unreadable image ({error})") from error
        return image


def require_pixels(height: int, width: int, max_pixels: int | None) -> None:
    if max_pixels is not None and height * width > max_pixels:
        raise ValueError(
            f"{width} × {height} pixels need about {12 * height * width / 1e9:.1f} GB; the limit is "
            f"max_pixels={max_pixels}"
        )


def image_size(source: str | Path | bytes) -> tuple[int, int]:
    """(height, width) of the upright image from the header, without decoding. Raises as `decode_image`."""
    with BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
        image = _open(file)
        is_on_its_side = orientation(image) > 4
        return (image.width, image.height) if is_on_its_side else (image.height, image.width)


def is_animated(path: str | Path) -> bool:
    """Whether a file holds several frames (GIF, TIFF, WebP, animated PNG). Only the first one is read."""
    try:
        with open(path, "rb") as file:
            image = _open(file)
            if image.format == "MPO":  # further frames are previews
                return False
            image.seek(1)
            return True
    except Exception:  # no second frame, or a damaged file, which `read_image` reports
        return False


def _open(file: BinaryIO) -> Image.Image:
    """Read the header of an image file. Raises as `decode_image`."""
    start = file.read(16)
    if start.startswith(b"GIF8"):
        _require_short_comments(start + file.read())
    file.seek(0)
    known = _known_formats()
    try:
        return Image.open(file, formats=known)
    except UnidentifiedImageError:
        is_heic = start[4:8] == b"ftyp" and start[8:11] in (b"hei", b"hev", b"mif")
        hint = f"not one of {', '.join(known)}"
        if is_heic and "HEIF" not in known:
            hint = "HEIC needs pillow-heif: pip install pillow-heif, or convert the image to JPEG"
        raise ValueError(f"unreadable image ({hint})") from None
    except Exception as error:  # as in `decode_image`
        raise ValueError(f"unreadable image ({error})") from error


@cache
def _known_formats() -> list[str]:
    """The formats in `FORMATS` that this build of Pillow has, and HEIC if pillow-heif is installed."""
    Image.init()
    if importlib.util.find_spec("pillow_heif"):
        import pillow_heif

        pillow_heif.register_heif_opener()
    return [name for name in (*FORMATS, "HEIF") if name in Image.OPEN]


def _require_few_scans(data: bytes) -> None:
    """Raise `ValueError` for a JPEG of more than `MAX_SCANS` scans, by its markers up to the end of the image."""
    scans, position = 0, 2
    while marker := _JPEG_MARKER.search(data, position):
        kind, position = data[marker.end() - 1], marker.end()
        if kind == 0xD9:  # end of image; previews or a video can follow
            return
        if kind == 0xDA:
            scans += 1
        if scans > MAX_SCANS:
            raise ValueError(f"a progressive JPEG of more than {MAX_SCANS} scans")
        position += int.from_bytes(data[position : position + 2])  # the length of a segment includes these two bytes


def _require_short_comments(data: bytes) -> None:
    """Raise `ValueError` for a GIF of more than `MAX_COMMENTS` blocks of comments."""
    comments = 0

    def color_table_bytes(flags: int) -> int:
        return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0

    try:
        position = 13 + color_table_bytes(data[10])
        while data[position] != 0x3B:  # end of the file
            is_comment = data[position : position + 2] == b"\x21\xfe"
            if data[position] == 0x2C:  # an image: position, colors and code size
                position += 11 + color_table_bytes(data[position + 9])
            elif data[position] == 0x21:  # an extension
                position += 2
            else:
                return  # damaged; Pillow reports it
            while length := data[position]:
                position += 1 + length
                comments += is_comment
                if comments > MAX_COMMENTS:
                    raise ValueError(f"a GIF of more than {MAX_COMMENTS} blocks of comments")
            position += 1
    except IndexError:  # truncated; Pillow reports it
        return


def _downloaded(url: str, timeout: float, kept: str | None) -> bytes:
    file = Path(kept, sha256(url.encode()).hexdigest()) if kept else None
    if file and file.exists():
        data = file.read_bytes()
        file.unlink()
        return data
    data = _download(url, timeout)
    if file:
        file.write_bytes(data)
    return data


def _download(url: str, timeout: float) -> bytes:
    parts, size = [], 0
    with httpx.stream("GET", url, timeout=timeout, follow_redirects=True) as response:
        response.raise_for_status()
        for part in response.iter_bytes():
            parts.append(part)
            size += len(part)
            if size > MAX_BYTES:
                raise ValueError(f"it is larger than the limit of {MAX_BYTES} bytes")
    return b"".join(parts)


def as_annotated(image: Image.Image, size: tuple[int, int] | None = None) -> Image.Image:
    """Convert to RGB and turn by the EXIF orientation, unless only the stored one has the annotated `size`."""
    turned = upright(image)
    fits = size is None or (turned.height, turned.width) == tuple(size)
    is_stored = not fits and (image.height, image.width) == tuple(size)
    return to_rgb(image if is_stored else turned)


def upright(image: Image.Image) -> Image.Image:
    """Turn an image by its EXIF orientation."""
    turn = _TURNS.get(orientation(image))
    if turn is None:
        return image
    image = image.transpose(turn)
    for note in _EXIF_NOTES:  # so that it is not turned again
        image.info.pop(note, None)
    return image


def orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 (upright) to 8; 1 for missing or damaged metadata."""
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # Pillow's TIFF reader raises many types of errors
        found = 1
    return found if isinstance(found, int) and found in _TURNS else 1


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB.

    16-bit gray values are scaled to 0 … 255 (Pillow's conversion would clip them), and so are floats up to 1.
    Transparency is dropped, as by the authors and transformers' pipeline.
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
    """Convert an image to (3, H, W), uint8 or float32. Gray is repeated, alpha dropped; 16 bits are scaled to 8.

    Args:
        image: a PIL image (not turned), or an array or tensor of (H, W), (H, W, C) or (C, H, W) with C from 1 to 4.
        input_data_format: "channels_first" or "channels_last" for arrays. By default the dimension of size 3 (else 1,
            4, 2) holds the channels, the first one if both have it.

    Raises:
        ValueError: for other types and shapes.
    """
    if isinstance(image, Image.Image):
        image = to_rgb(image)
        pixels = np.empty((image.height, image.width, 3), np.uint8)
        for top in range(0, image.height, 1024):  # in bands: Pillow's conversion takes three times the memory
            pixels[top : top + 1024] = image.crop((0, top, image.width, min(top + 1024, image.height)))
        return torch.from_numpy(pixels).permute(2, 0, 1)
    if not isinstance(image, (np.ndarray, Tensor)):
        raise ValueError(
            f"cannot make an image of {type(image).__name__}; give a PIL image, an array, a tensor or a path"
        )
    image = as_tensor(image)
    if image.dtype == torch.uint16:
        image = (image.long() + 128) // 257
    image = _channels_first(image, input_data_format)
    colors = 1 if image.shape[0] == 2 else 3  # 2: gray and alpha
    image = image[:colors].expand(3, -1, -1)
    if image.is_floating_point():
        return image.float()
    if image.dtype == torch.uint8:
        return image
    if image.dtype == torch.bool:
        return image.to(torch.uint8) * 255
    if (image > 255).any():  # 16 bits in a wider type
        image = (image.clamp(0, 65535).long() + 128) // 257
    return image.clamp(0, 255).to(torch.uint8)


def as_tensor(image: np.ndarray | Tensor) -> Tensor:
    """A tensor of an array, also one that is reversed, of another byte order, read-only or of a type unknown to torch.

    uint32 and uint64 become int64.
    """
    if isinstance(image, Tensor):
        return image
    if image.dtype in (np.uint32, np.uint64):
        image = image.astype(np.int64)
    image = np.ascontiguousarray(image, image.dtype.newbyteorder("="))
    return torch.from_numpy(image if image.flags.writeable else image.copy())


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
    """Scale floats in [0, 1], up to `OVERSHOOT`, to 0..255, as the rescaling of the processors expects."""
    if image.is_floating_point() and image.numel() and image.min() >= -OVERSHOOT and image.max() <= 1 + OVERSHOOT:
        return (image * 255).clamp(0, 255)
    return image


def pillow_resize(image: Tensor, size: tuple[int, int], resample) -> Tensor:
    """Resize (C, H, W) uint8 or float32 on the CPU to (C, h, w) with Pillow's antialiased filter."""
    resample = Image.Resampling(int(resample))
    if image.dtype == torch.uint8 and len(image) == 3:
        pixels = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
        return torch.from_numpy(np.array(pixels.resize(size[::-1], resample))).permute(2, 0, 1)
    planes = [np.array(Image.fromarray(plane).resize(size[::-1], resample)) for plane in image.contiguous().numpy()]
    return torch.from_numpy(np.stack(planes))


def flatten(images) -> list:
    """One image, a stack or nested lists → a list of images."""
    if isinstance(images, (list, tuple)):
        return [image for item in images for image in flatten(item)]
    if isinstance(images, (np.ndarray, Tensor)) and images.ndim == 4:
        return list(images)
    return [images]


def read_maps(maps, count: int) -> list[Tensor]:
    """A map, a path, or a list or stack of them → ids (H, W) int64 for each of `count` images."""
    if isinstance(maps, (np.ndarray, Tensor)):
        is_single = maps.ndim == 2 or (maps.ndim == 3 and count == 1)
    else:
        is_single = isinstance(maps, (Image.Image, str, os.PathLike))
    maps = [maps] if is_single else list(maps)
    if len(maps) != count:
        raise ValueError(f"{len(maps)} segmentation_maps for {count} images; give one for each image")
    return [read_map(segmentation_map) for segmentation_map in maps]


def read_map(segmentation_map) -> Tensor:
    """A path, PIL image, array or tensor, with one channel or RGB-coded ids → ids (H, W) int64."""
    if isinstance(segmentation_map, (str, os.PathLike)):
        segmentation_map = decode_image(segmentation_map)
    if isinstance(segmentation_map, Image.Image):
        segmentation_map = picture_ids(segmentation_map)
    if isinstance(segmentation_map, Tensor):
        ids = segmentation_map
    else:
        array = np.asarray(segmentation_map)
        if array.dtype.kind not in "buif":
            raise ValueError(f"a segmentation map holds numbers, not {array.dtype}")
        ids = torch.from_numpy(array.astype(np.int64))
    if ids.ndim == 3 and 1 in (ids.shape[0], ids.shape[-1]):
        ids = ids[0] if ids.shape[0] == 1 else ids[..., 0]
    elif ids.ndim == 3 and 3 in (ids.shape[0], ids.shape[-1]):
        ids = rgb_to_id(ids if ids.shape[-1] == 3 else ids.permute(1, 2, 0))
    if ids.ndim != 2:
        raise ValueError(f"segmentation map of shape {tuple(ids.shape)}: give (H, W), or (H, W, 3) RGB-coded ids")
    return ids.long()


def picture_ids(picture: Image.Image) -> np.ndarray:
    """Label image with RGB-coded ids, values of one channel, or indices of a palette → ids (H, W) int32.

    Raises:
        ValueError: for other modes.
    """
    pixels = np.asarray(picture)
    if picture.mode in ("RGB", "RGBA"):
        return rgb_to_id(pixels)
    if pixels.ndim != 2 or pixels.dtype.kind == "f":
        raise ValueError(f"a label image needs one channel or RGB, not mode {picture.mode!r}")
    return pixels.astype(np.int32)


def rgb_to_id(rgb: np.ndarray | Tensor) -> np.ndarray | Tensor:
    """Colors (…, 3) or (…, 4) uint8 → ids R + 256 G + 65536 B (…) int32."""
    rgb = rgb.astype(np.int32) if isinstance(rgb, np.ndarray) else rgb.int()
    return rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]


def id_to_rgb(ids: np.ndarray) -> np.ndarray:
    """Ids R + 256 G + 65536 B (…) → colors (…, 3) uint8."""
    return np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)


def distinct_values(ids: np.ndarray) -> list[int]:
    """The distinct values of a map, ascending. Maps are piecewise constant, so only starts of runs are examined."""
    flat = ids.ravel()
    return np.unique(flat[_run_starts(flat)]).tolist()


def look_up(values: np.ndarray, ids: list[int] | np.ndarray) -> np.ndarray:
    """Position in `ids` of each value, −1 for unknown ones: int32 of the same shape. Each run is looked up once."""
    flat, ids = values.ravel(), np.asarray(ids)
    if not flat.size or not ids.size:
        return np.full(values.shape, -1, np.int32)
    starts = _run_starts(flat)
    order = np.argsort(ids)
    places = order[np.searchsorted(ids[order], flat[starts]).clip(max=len(ids) - 1)]
    found = np.where(ids[places] == flat[starts], places, -1).astype(np.int32)
    return found.repeat(np.diff(starts, append=flat.size)).reshape(values.shape)


def _run_starts(flat: np.ndarray) -> np.ndarray:
    """Indices at which runs of equal values start in a flat array."""
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    return np.insert(changes, 0, 0) if flat.size else changes
