"""Rasters: parts equal those of the image read at once; files that cannot be read in parts are read at once."""

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from eomt.image_processing import rasters
from eomt.image_processing.bands import open_any
from eomt.image_processing.rasters import open_raster

ROWS, COLUMNS = slice(30, 71), slice(5, 95)
STRIPS = {"photometric": "minisblack", "planarconfig": "contig", "rowsperstrip": 7}
TILES = {"photometric": "minisblack", "planarconfig": "contig", "tile": (32, 32)}
PLANES = {"photometric": "minisblack", "planarconfig": "separate", "tile": (32, 32)}
RGB = {"photometric": "rgb", "tile": (32, 32)}


def write(path, channels: int, dtype=np.uint8, **options):
    """A file of 90 × 130 pixels with a dark part."""
    pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (90, 130, channels)).astype(dtype)
    pixels[ROWS, COLUMNS] %= 200
    if path.suffix == ".npy":
        np.save(path, pixels)
    else:
        planes = options.get("planarconfig") == "separate"
        tifffile.imwrite(path, pixels.transpose(2, 0, 1) if planes else pixels, **options)
    return path


@pytest.mark.parametrize(("name", "channels", "dtype", "options"), [
    ("a.npy", 4, np.uint8, {}),
    ("a.npy", 3, np.uint16, {}),
    ("a.tif", 4, np.uint16, STRIPS),
    ("a.tif", 4, np.uint8, STRIPS | {"compression": "zlib"}),
    ("a.tif", 5, np.uint16, TILES | {"compression": "lzw", "predictor": True}),
    ("a.tif", 2, np.uint8, PLANES | {"compression": "zlib"}),
    ("a.tif", 3, np.uint8, RGB | {"compression": "lzw"}),
])  # fmt: skip
def test_parts_equal_the_image(name, channels, dtype, options, tmp_path, monkeypatch):
    file = write(tmp_path / name, channels, dtype, **options)
    whole = open_any(file, channels)
    if isinstance(whole, Image.Image):
        whole = torch.from_numpy(np.array(whole)).permute(2, 0, 1)
    monkeypatch.setattr(rasters, "open_any", None)
    monkeypatch.setattr(rasters, "STEP_PIXELS", 1000)
    raster = open_raster(file, channels)
    assert (raster.channels, raster.height, raster.width) == tuple(whole.shape)
    assert torch.equal(raster.read(ROWS, COLUMNS), whole[:, ROWS, COLUMNS])
    if channels == 3 and dtype == np.uint8:
        expected = torch.from_numpy(np.array(Image.fromarray(whole.permute(1, 2, 0).numpy()).reduce(4)))
        assert (raster.reduced(4).int() - expected.permute(2, 0, 1).int()).abs().max() <= 1  # rounding
    else:
        assert raster.reduced(4).shape == (channels, 23, 33)
        torch.testing.assert_close(raster.reduced(1), whole)


@pytest.mark.parametrize("kind", ["float", "orientation", "gray", "jpeg"])
def test_other_files_are_read_at_once(kind, tmp_path):
    """The scale of fractions depends on all of them, and only Pillow turns images and converts colors."""
    file = tmp_path / ("a.jpg" if kind == "jpeg" else "a.tif")
    if kind == "float":
        tifffile.imwrite(file, np.random.default_rng(0).random((90, 130, 4), np.float32), **TILES)
        raster = open_raster(file, 4)
        assert torch.equal(raster.read(ROWS, COLUMNS), open_any(file, 4)[:, ROWS, COLUMNS])
        return
    if kind == "orientation":
        write(file, 3, **RGB, extratags=[(274, "H", 1, 6, True)])
    else:
        Image.new("L" if kind == "gray" else "RGB", (130, 90), 7).save(file)
    image = open_raster(file)
    assert isinstance(image, Image.Image)
    assert image.size == ((90, 130) if kind == "orientation" else (130, 90))


@pytest.mark.parametrize("name", ["a.npy", "a.tif"])
def test_refused_files_are_named(name, tmp_path):
    file = write(tmp_path / name, 4, **({} if name == "a.npy" else TILES | {"compression": "zlib"}))
    for channels, most in ((5, None), (4, 90 * 130 - 1)):
        with pytest.raises(ValueError, match=name):
            open_raster(file, channels, most)
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=name):
        open_raster(file, 4).read(slice(0, 90), slice(0, 130))
    file.write_bytes(b"junk")
    with pytest.raises(ValueError, match=name):
        open_raster(file, 4)
