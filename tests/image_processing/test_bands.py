"""Images of 1 to 16 channels: reading, normalization, and models from RGB weights."""

from functools import partial

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from eomt import EoMTForUniversalSegmentation, EoMTImageProcessor
from eomt.image_processing.bands import picture_of, read_bands
from eomt.image_processing.inference import infer, open_source
from eomt.modeling_eomt.resample import spread_channels
from tests.models import tiny_model


def bands(channels: int, dtype=np.uint8) -> np.ndarray:
    """A random image (20, 30, channels) with the full range of a type."""
    highest = 1 if np.dtype(dtype).kind == "f" else np.iinfo(dtype).max
    return (np.random.default_rng(0).random((20, 30, channels)) * highest).astype(dtype)


def save(path, image):
    if path.suffix == ".npy":
        np.save(path, image)
    else:
        tifffile.imwrite(path, image, photometric="minisblack")
    return path


@pytest.mark.parametrize("suffix", [".npy", ".tif"])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(("channels", "dtype"), [
    (1, np.uint8), (2, np.uint8), (4, np.uint16), (5, np.float32), (16, np.uint8), (16, np.uint16)
])  # fmt: skip
def test_values_are_scaled_to_255_and_channels_found(channels, dtype, first, suffix, tmp_path):
    image = bands(channels, dtype)
    stored = np.ascontiguousarray(image.transpose(2, 0, 1)) if first else image
    found = read_bands(save(tmp_path / f"image{suffix}", stored), channels)
    assert found.shape == (channels, 20, 30)
    assert found.dtype == (torch.uint8 if dtype == np.uint8 else torch.float32)
    scale = {np.uint8: 1, np.uint16: 1 / 257, np.float32: 255}[dtype]
    expected = torch.from_numpy(image.astype(np.float32).transpose(2, 0, 1)) * scale
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=1e-4)


def test_a_tiff_of_too_many_pixels_is_refused(tmp_path, monkeypatch):
    data = save(tmp_path / "a.tif", bands(4)).read_bytes()
    monkeypatch.setattr("eomt.image_processing.bands.MAX_BYTES", 2399)
    with pytest.raises(ValueError, match="2400"):
        read_bands(data, 4, "a.tif")


@pytest.mark.parametrize(("name", "content"), [("a.npy", b"junk"), ("a.tif", b"junk"), ("a.png", b"junk")])
def test_damaged_files_are_named(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=name):
        read_bands(tmp_path / name)


def test_files_with_pickles_are_refused(tmp_path):
    np.save(tmp_path / "evil.npy", np.array([object()], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="evil"):
        read_bands(tmp_path / "evil.npy")


def test_another_number_of_channels_is_named(tmp_path):
    file = save(tmp_path / "image.npy", bands(5))
    processor = EoMTImageProcessor(num_channels=4, image_mean=[0.5] * 4, image_std=[0.5] * 4, size=32)
    with pytest.raises(ValueError, match=r"image\.npy.* 5 .* 4"):
        processor(str(file), return_tensors="pt")
    with pytest.raises(ValueError, match="image_mean"):
        EoMTImageProcessor(num_channels=4)


@pytest.mark.parametrize("channels", [1, 2, 4, 16])
def test_the_processor_normalizes_each_channel(channels, tmp_path):
    mean, std = np.linspace(0.2, 0.6, channels).tolist(), np.linspace(0.1, 0.3, channels).tolist()
    settings = {"task": "panoptic", "size": 32, "num_channels": channels, "image_mean": mean, "image_std": std}
    EoMTImageProcessor(**settings).save_pretrained(tmp_path)
    processor = EoMTImageProcessor.from_pretrained(tmp_path)
    image = bands(channels)
    file = save(tmp_path / "image.npy", image)
    pixels = processor([image, str(file)], return_tensors="pt", do_resize=False, do_pad=False)["pixel_values"]
    expected = (torch.from_numpy(image) / 255 - torch.tensor(mean)) / torch.tensor(std)
    torch.testing.assert_close(pixels[0], expected.permute(2, 0, 1), rtol=0, atol=1e-5)
    assert torch.equal(pixels[0], pixels[1])
    assert processor(image, return_tensors="pt")["pixel_values"].shape == (1, channels, 32, 32)


@pytest.mark.parametrize("as_file", [False, True])
def test_dark_images_of_16_bits_keep_their_scale(as_file, tmp_path):
    image = bands(4, np.uint16)[:16, :16] // 500  # at most 131 of 65535
    processor = EoMTImageProcessor(size=32, num_channels=4, image_mean=0, image_std=1, do_resize=False, do_pad=False)
    source = str(save(tmp_path / "image.npy", image)) if as_file else image
    expected = torch.from_numpy(image / 65535).float().permute(2, 0, 1)
    torch.testing.assert_close(processor(source, return_tensors="pt")["pixel_values"][0], expected)
    model, seen = tiny_model(num_channels=4), []
    model.embeddings.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][0]))
    list(infer(model, processor, [source], read=partial(open_source, channels=4)))
    torch.testing.assert_close(seen[0], expected)


def test_floats_are_kept_without_rescaling():
    pixels = torch.randn(4, 32, 32)
    processor = EoMTImageProcessor(size=32, num_channels=4, image_mean=0, image_std=1, do_rescale=False)
    assert torch.equal(processor(pixels, do_normalize=False, return_tensors="pt")["pixel_values"][0], pixels)


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
@torch.no_grad()
def test_rgb_kernels_are_spread_by_timms_rule(channels, tmp_path):
    kernel = torch.randn(5, 3, 16, 16)
    spread = spread_channels(kernel, channels)
    if channels == 1:
        assert torch.equal(spread[:, 0], kernel.sum(1))
    else:
        for channel in range(channels):
            torch.testing.assert_close(spread[:, channel], kernel[:, channel % 3] * 3 / channels)
    rgb = tiny_model()
    rgb.save_pretrained(tmp_path)
    model = EoMTForUniversalSegmentation.from_pretrained(tmp_path, num_channels=channels)
    assert model.config.num_channels == channels
    assert torch.equal(model.embeddings.projection.weight, spread_channels(rgb.embeddings.projection.weight, channels))
    assert model(torch.randn(1, channels, 64, 64)).class_queries_logits.shape == (1, 7, 6)
    model.save_pretrained(tmp_path / "saved")
    loaded = EoMTForUniversalSegmentation.from_pretrained(tmp_path / "saved")
    assert torch.equal(loaded.embeddings.projection.weight, model.embeddings.projection.weight)


def test_pictures_of_bands_are_rgb():
    picture = picture_of(torch.full((5, 4, 6), 7, dtype=torch.uint8))
    assert isinstance(picture, Image.Image)
    assert (picture.size, picture.getpixel((0, 0))) == ((6, 4), (7, 7, 7))
