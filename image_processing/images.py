"""Pictures, arrays and tensors → (3, H, W) RGB tensors, uint8 0..255 (float arrays stay float32)."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")


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
