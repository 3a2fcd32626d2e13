"""The one place that opens pictures: files, bytes, URLs, arrays → RGB images, uint8 (3, H, W) tensors, or maps of ids.

A file is read with bounds: only the formats listed here, of bounded bytes, scans and comments, so that neither a
decoder that starts other programs nor one that runs for minutes is ever reached.
"""

import base64
import importlib.util
import os
import re
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from huggingface_hub.utils import httpx  # as transformers takes it: the client that comes with the hub
from PIL import Image, UnidentifiedImageError
from torch import Tensor

FORMATS = ("JPEG", "PNG", "BMP", "DIB", "WEBP", "TIFF", "GIF", "PPM", "JPEG2000", "AVIF")
"""What is opened, by Pillow's names. Pillow itself opens forty formats, PostScript among them, by Ghostscript."""
URL_TIMEOUT = 30.0
"""Seconds to wait for a response."""
MOST_BYTES = 1 << 31
"""Of a file; larger ones are refused before they are read."""
MOST_SCANS = 100
"""Of a progressive JPEG, which is decoded once for each; usual are ten."""
MOST_COMMENTS = 4096
"""Blocks of 255 bytes of a GIF's comments, which Pillow joins in quadratic time."""
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
            return as_annotated(decode_image(_download(source, timeout)))
        except (ValueError, httpx.HTTPError, httpx.InvalidURL) as error:
            raise ValueError(f"cannot read image {source!r}: {error}") from error
    if isinstance(source, str) and not (len(source) < 4096 and os.path.exists(source)):
        try:
            return as_annotated(decode_image(base64.b64decode(source.partition(",")[2] or source)))
        except ValueError:  # no base64, or no picture in it: a path, then
            pass
    return read_image(source, size)


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
        return as_annotated(decode_image(path, max_pixels), size)
    except (ValueError, OSError) as error:
        if isinstance(error, (FileNotFoundError, PermissionError, IsADirectoryError)):
            raise
        raise ValueError(f"cannot read image {str(path)!r}: {error}") from error


def decode_image(source: str | Path | bytes, max_pixels: int | None = None) -> Image.Image:
    """Image file or its bytes → decoded picture, as it is stored.

    Raises:
        ValueError: with the reason for what is no image of `FORMATS`, is damaged or over the bounds.
        OSError: for files that cannot be opened.
    """
    if isinstance(source, bytes):
        data = source
    else:
        size = os.path.getsize(source)
        if size > MOST_BYTES:
            raise ValueError(f"{size} bytes are more than the {MOST_BYTES} allowed")
        data = Path(source).read_bytes()
    if data.count(b"\xff\xda") > MOST_SCANS:
        _require_few_scans(data)
    with _open(BytesIO(data)) as image:
        pixels = image.width * image.height
        if max_pixels is not None and pixels > max_pixels:
            raise ValueError(
                f"{image.width} × {image.height} pixels need about {12 * pixels / 1e9:.1f} GB; max_pixels={max_pixels} "
                "is the limit"
            )
        try:
            image.load()
        except MemoryError:
            raise
        except Exception as error:  # what Pillow's decoders raise for damaged files has no common class
            raise ValueError(f"unreadable image ({error})") from error
        return image


def image_size(source: str | Path | bytes) -> tuple[int, int]:
    """(H, W) of the upright image out of its header, without decoding it. Raises as `decode_image`."""
    with BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
        image = _open(file)
        turned = orientation(image) > 4  # a quarter to the left or right
        return (image.width, image.height) if turned else (image.height, image.width)


def is_animated(path: str | Path) -> bool:
    """Whether a file holds several frames (GIF, TIFF, WebP, animated PNG); only the first one is read."""
    try:
        with open(path, "rb") as file:
            image = _open(file)
            if image.format == "MPO":  # a camera's previews
                return False
            image.seek(1)
            return True
    except Exception:  # no second frame; of a damaged file, reading the image reports the error
        return False


def allow_pixels(count: int) -> None:
    """Let Pillow open pictures of so many pixels in this process; it warns of half of its limit."""
    Image.MAX_IMAGE_PIXELS = max(count, Image.MAX_IMAGE_PIXELS or 0)


def _open(file: BinaryIO) -> Image.Image:
    """A file → picture whose header is read. Raises as `decode_image`."""
    start = file.read(16)
    if start.startswith(b"GIF8"):
        _require_short_comments(start + file.read())
    file.seek(0)
    known = _known_formats()
    try:
        return Image.open(file, formats=known)
    except UnidentifiedImageError:
        is_heic = start[4:8] == b"ftyp" and start[8:11] in (b"hei", b"hev", b"mif")
        hint = f"it is none of {', '.join(known)}"
        if is_heic and "HEIF" not in known:
            hint = "HEIC needs pillow-heif: pip install pillow-heif, or convert it to JPEG"
        raise ValueError(f"unreadable image ({hint})") from None
    except Exception as error:  # as in `decode_image`
        raise ValueError(f"unreadable image ({error})") from error


@cache
def _known_formats() -> list[str]:
    """Those of `FORMATS` that Pillow is built with, and HEIC where pillow-heif is installed."""
    Image.init()
    if importlib.util.find_spec("pillow_heif"):
        import pillow_heif

        pillow_heif.register_heif_opener()
    return [name for name in (*FORMATS, "HEIF") if name in Image.OPEN]


def _require_few_scans(data: bytes) -> None:
    """`ValueError` for a JPEG of more than `MOST_SCANS` scans, counted by its markers up to the end of its image."""
    scans, position = 0, 2
    while marker := _MARKER.search(data, position):
        kind, position = data[marker.end() - 1], marker.end()
        if kind == 0xD9:  # end of image; what follows are previews or a video
            return
        if kind == 0xDA:
            scans += 1
        position += int.from_bytes(data[position : position + 2])  # a segment's length counts itself
        if scans > MOST_SCANS:
            raise ValueError(f"a progressive JPEG of more than {MOST_SCANS} scans")


_MARKER = re.compile(rb"\xff+[\x02-\xcf\xd9-\xfe]", re.DOTALL)  # not the restarts and zeros inside of a scan


def _require_short_comments(data: bytes) -> None:
    """`ValueError` for a GIF of more than `MOST_COMMENTS` blocks of comments."""
    comments = 0

    def color_table(flags: int) -> int:
        return 3 << (flags & 7) + 1 if flags & 0x80 else 0

    try:
        position = 13 + color_table(data[10])
        while data[position] != 0x3B:  # the file's end
            is_comment = data[position : position + 2] == b"\x21\xfe"
            if data[position] == 0x2C:  # an image: its place, colors and code size
                position += 11 + color_table(data[position + 9])
            elif data[position] == 0x21:  # an extension
                position += 2
            else:
                return  # damaged; Pillow says how
            while length := data[position]:
                position += 1 + length
                comments += is_comment
                if comments > MOST_COMMENTS:
                    raise ValueError(f"a GIF of more than {MOST_COMMENTS} blocks of comments")
            position += 1
    except IndexError:  # cut short
        return


def _download(url: str, timeout: float) -> bytes:
    parts, size = [], 0
    with httpx.stream("GET", url, timeout=timeout, follow_redirects=True) as response:
        response.raise_for_status()
        for part in response.iter_bytes():
            parts.append(part)
            size += len(part)
            if size > MOST_BYTES:
                raise ValueError(f"it is larger than the {MOST_BYTES} bytes allowed")
    return b"".join(parts)


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

    Gray is repeated, alpha dropped, 16-bit scaled to 8.

    Raises:
        ValueError: for any other shape.
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
    if isinstance(image, np.ndarray):
        if image.dtype in (np.uint32, np.uint64):
            image = image.astype(np.int64)
        elif not image.flags.writeable:  # such as np.asarray of a picture
            image = image.copy()
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
    if image.dtype == torch.bool:
        return image.to(torch.uint8) * 255
    if (image > 255).any():  # 16 bits in a wider type
        image = (image.clamp(0, 65535).long() + 128) // 257
    return image.clamp(0, 255).to(torch.uint8)


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


def pillow_resize(image: Tensor, size: tuple[int, int], resample) -> Tensor:
    """(3, H, W) uint8 or float32, on the host → (3, h, w), Pillow's (antialiased) filter."""
    resample = Image.Resampling(int(resample))
    if image.dtype == torch.uint8:
        picture = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
        return torch.from_numpy(np.array(picture.resize(size[::-1], resample))).permute(2, 0, 1)
    planes = [np.array(Image.fromarray(plane).resize(size[::-1], resample)) for plane in image.contiguous().numpy()]
    return torch.from_numpy(np.stack(planes))


def flatten(images) -> list:
    """One image, a stack of them or (nested) lists → list of images."""
    if isinstance(images, (list, tuple)):
        return [image for item in images for image in flatten(item)]
    if isinstance(images, (np.ndarray, Tensor)) and images.ndim == 4:
        return list(images)
    return [images]


def read_maps(maps, count: int) -> list[Tensor]:
    """One map, its path, a list or a stack of them, for `count` images → (H, W) int64 ids of each."""
    single = isinstance(maps, (Image.Image, str, os.PathLike))
    single |= isinstance(maps, (np.ndarray, Tensor)) and (maps.ndim == 2 or (maps.ndim == 3 and count == 1))
    maps = [maps] if single else list(maps)
    if len(maps) != count:
        raise ValueError(f"{len(maps)} segmentation_maps for {count} images; give one an image")
    return [read_map(decode_image(m) if isinstance(m, (str, os.PathLike)) else m) for m in maps]


def read_map(segmentation_map) -> Tensor:
    """PIL image, array or tensor of (H, W), one channel, or RGB-coded ids → (H, W) int64 ids."""
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
    """Label picture → (H, W) int32: RGB-coded ids, or its one channel's values; a palette's indices are the labels.

    Raises:
        ValueError: for any other kind of picture.
    """
    pixels = np.asarray(picture)
    if picture.mode in ("RGB", "RGBA"):
        return rgb_to_id(pixels)
    if pixels.ndim != 2 or pixels.dtype.kind == "f":
        raise ValueError(f"a label image needs one channel or RGB, not mode {picture.mode!r}")
    return pixels.astype(np.int32)


def rgb_to_id(rgb: np.ndarray | Tensor) -> np.ndarray | Tensor:
    """(…, 3) or (…, 4) uint8 → (…) int32 ids, R + 256 G + 65536 B."""
    rgb = rgb.astype(np.int32) if isinstance(rgb, np.ndarray) else rgb.int()
    return rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]


def id_to_rgb(ids: np.ndarray) -> np.ndarray:
    """(…) ids, R + 256 G + 65536 B → (…, 3) uint8."""
    return np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)


def distinct_values(ids: np.ndarray) -> list[int]:
    """The distinct values of a map, ascending. Only where a run starts is looked at: maps are piecewise constant."""
    flat = ids.ravel()
    return np.unique(flat[_run_starts(flat)]).tolist()


def look_up(values: np.ndarray, ids: list[int] | np.ndarray) -> np.ndarray:
    """Values of any shape → their positions in `ids`, -1 for a value that is not there: int32 of the same shape.

    Only where a run starts is a value looked up.
    """
    flat, ids = values.ravel(), np.asarray(ids)
    if not flat.size or not ids.size:
        return np.full(values.shape, -1, np.int32)
    starts = _run_starts(flat)
    order = np.argsort(ids)
    places = order[np.searchsorted(ids[order], flat[starts]).clip(max=len(ids) - 1)]
    found = np.where(ids[places] == flat[starts], places, -1).astype(np.int32)
    return found.repeat(np.diff(starts, append=flat.size)).reshape(values.shape)


def _run_starts(flat: np.ndarray) -> np.ndarray:
    """Where runs of equal values start, in a flat array."""
    return np.flatnonzero(np.append(flat[:1] == flat[:1], flat[1:] != flat[:-1]))
