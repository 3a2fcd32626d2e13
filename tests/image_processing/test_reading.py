"""Files of strangers: only listed formats are opened, and no small file keeps a decoder busy."""

import io
import struct
import time

import numpy as np
import pytest
from PIL import Image

from eomt.image_processing.reading import is_animated, open_image, read_image


def encoded(kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8)).save(buffer, kind, **options)
    return buffer.getvalue()


def gif_with_notes(blocks: int) -> bytes:
    data = encoded("GIF")
    start = data.index(b"\x2c", 13 + 3 * 256)
    note = b"\x21\xfe" + (b"\x01x" * blocks) + b"\x00"
    return data[:start] + note + data[start:]


def jpeg_with_scans(count: int) -> bytes:
    data = encoded("JPEG", progressive=True)
    start = data.rindex(b"\xff\xda")
    return data[:start] + data[start:-2] * count + data[-2:]


def tiff_with_text_as_offset() -> bytes:
    """A strip's offset (tag 273) of type ASCII."""
    data = bytearray(encoded("TIFF"))
    (at,) = struct.unpack("<I", data[4:8])
    for entry in range(at + 2, at + 2 + 12 * struct.unpack("<H", data[at : at + 2])[0], 12):
        if struct.unpack("<H", data[entry : entry + 2])[0] == 273:
            data[entry + 2 : entry + 4] = struct.pack("<H", 2)
    return bytes(data)


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n{} loop\n"


@pytest.mark.parametrize("data", [
    POSTSCRIPT, gif_with_notes(80_000), jpeg_with_scans(20_000), tiff_with_text_as_offset(),
], ids=["postscript", "gif", "jpeg", "tiff"])  # fmt: skip
def test_hostile_files_are_an_error_at_once(data, tmp_path):
    (tmp_path / "photo.jpg").write_bytes(data)
    started = time.process_time()
    with pytest.raises(ValueError, match=r"photo\.jpg"):
        read_image(tmp_path / "photo.jpg")
    assert time.process_time() - started < 2
    assert not is_animated(tmp_path / "photo.jpg")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM"])
def test_listed_formats_are_read(kind, tmp_path):
    (tmp_path / "photo").write_bytes(encoded(kind))
    assert read_image(tmp_path / "photo").size == (32, 24)
    assert open_image(str(tmp_path / "photo")).mode == "RGB"
    (tmp_path / "notes.gif").write_bytes(gif_with_notes(100))
    assert read_image(tmp_path / "notes.gif").size == (32, 24)
