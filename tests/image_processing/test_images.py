"""Untrusted image files: accepted formats, and limits, so that no file occupies a decoder or starts a program."""

import io
import time

import numpy as np
import pytest
from huggingface_hub.utils import httpx
from PIL import Image

from eomt.image_processing.images import decode_image, image_size, is_animated, open_image, read_image

PIXELS = np.random.default_rng(0).integers(0, 255, (24, 40, 3), np.uint8)


def stored(name: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, name, **options)
    return buffer.getvalue()


def gif_with_comments(blocks: int) -> bytes:
    data = stored("GIF")
    start = 13 + 3 * 2 ** ((data[10] & 7) + 1)
    return data[:start] + b"\x21\xfe" + (b"\xff" + b"a" * 255) * blocks + b"\0" + data[start:]


def jpeg_of_scans(count: int) -> bytes:
    data = stored("JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + data[-2:]


def tiff_with_text_offsets() -> bytes:
    data = bytearray(stored("TIFF"))
    entry = data.index(b"\x11\x01\x04\x00")  # StripOffsets, LONG
    data[entry + 2 : entry + 4] = b"\x02\x00"  # ASCII
    return bytes(data)


HOSTILE = {
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{ } loop\n",
    "comments": gif_with_comments(80_000),
    "scans": jpeg_of_scans(20_000),
    "offsets": tiff_with_text_offsets(),
    "cut": stored("PNG")[:200],
    "text": b"no image",
    "empty": b"",
    "heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_refused_at_once(tmp_path, kind):
    path = tmp_path / "photo.jpg"
    path.write_bytes(HOSTILE[kind])
    start = time.process_time()
    with pytest.raises(ValueError, match=r"photo\.jpg"):
        read_image(path)
    with pytest.raises(ValueError, match=r"image|JPEG|GIF"):
        decode_image(HOSTILE[kind])
    assert not is_animated(path)
    assert time.process_time() - start < 5


@pytest.mark.parametrize("name", ["JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM", "JPEG2000", "AVIF"])
def test_every_format_is_read(tmp_path, name):
    path = tmp_path / "a"
    path.write_bytes(stored(name))
    assert image_size(path) == image_size(path.read_bytes()) == (24, 40)
    expected = Image.open(path).convert("RGB")
    assert np.array_equal(np.asarray(read_image(path)), np.asarray(expected))


def test_usual_files_are_within_the_limits():
    assert decode_image(gif_with_comments(100)).size == (40, 24)
    assert decode_image(stored("JPEG", progressive=True)).size == (40, 24)
    assert decode_image(stored("JPEG") + b"\xff\xda" * 1000).size == (40, 24)  # a video after the image


def test_animated_files_are_recognized(tmp_path):
    frames = [Image.new("L", (4, 4), i) for i in range(3)]
    for name in ("a.tif", "a.gif", "a.png"):
        for count in (1, 3):
            frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:count])
            assert is_animated(tmp_path / name) == (count > 1)


def test_a_url_without_an_answer_is_named(monkeypatch):
    def hang(method, url, **options):
        raise httpx.ReadTimeout(f"no answer in {options['timeout']} s")

    monkeypatch.setattr(httpx, "stream", hang)
    with pytest.raises(ValueError, match=r"https://a\.b/c\.png.*30\.0 s"):
        open_image("https://a.b/c.png")
