"""The only place where storage space, uint8 [0, 255], and model space, float [-1, 1], meet."""

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from synthaug._types import Images, Pixels, Unsigned


def to_images(pixels: Pixels, dtype: torch.dtype = torch.float32) -> Images:
    """Maps storage space [0, 255] to model space [-1, 1]."""
    return pixels.to(dtype) / 127.5 - 1


def to_pixels(images: Images) -> Pixels:
    """Maps model space [-1, 1] to storage space [0, 255]: rounds to the nearest level, then clamps.

    A NaN has no level: callers check `torch.isfinite` first, where they can still say which row
    it was.
    """
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def digest(pixels: Tensor) -> int:
    """A 64-bit content key of one image, uint8 (C, H, W): equal pixels and shape, equal key.

    Unsigned, taken from blake2b, so it does not depend on the process, the platform or the file
    format that the image came from.
    """
    array = np.ascontiguousarray(pixels.numpy())
    shape = ",".join(map(str, array.shape)).encode()
    hashed = hashlib.blake2b(array.tobytes(), digest_size=8, person=b"synthaug-image", key=shape)
    return int.from_bytes(hashed.digest(), "little")


def content_fingerprint(keys: Unsigned) -> str:
    """A digest of the content keys of images in their order: who has both knows what they are."""
    return hashlib.blake2b(keys.astype("<u8").tobytes(), digest_size=16).hexdigest()


def to_pil(pixels: Tensor) -> Image.Image:
    """One image, uint8 (C, H, W) with C 1 or 3, as a PIL image of mode L or RGB."""
    array = np.ascontiguousarray(pixels.numpy())
    channels, height, width = array.shape
    if channels == 1:
        return Image.fromarray(array[0])
    if height * width < 2000:  # CHW => HWC: small ones by numpy, large ones faster by Pillow
        return Image.frombytes("RGB", (width, height), array.transpose(1, 2, 0).tobytes())
    planes = [Image.frombuffer("L", (width, height), x, "raw", "L", 0, 1) for x in array]
    return Image.merge("RGB", planes)


def channels_last(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Copies images, uint8 (n, C, H, W), to (n, H, W, C), several times faster than numpy does."""
    n, channels, height, width = pixels.shape
    woven = np.empty((n, height, width, channels), np.uint8)
    for channel in range(channels):
        woven[..., channel] = pixels[:, channel]
    return woven


def grid(pixels: Pixels, *, columns: int, scale: int = 1, padding: int = 2) -> Image.Image:
    """Lays images out row by row on a white sheet, each enlarged `scale` times, not smoothed."""
    if len(pixels) == 0:
        raise ValueError("`pixels` holds no image to lay out.")
    n, c, h, w = pixels.shape
    rows = -(-n // columns)
    sheet = np.full(
        (rows * (h * scale + padding) + padding, columns * (w * scale + padding) + padding, c),
        255,
        np.uint8,
    )
    for i, image in enumerate(pixels.numpy()):
        tile = image.transpose(1, 2, 0).repeat(scale, 0).repeat(scale, 1)  # CHW => HWC
        top = padding + (i // columns) * (h * scale + padding)
        left = padding + (i % columns) * (w * scale + padding)
        sheet[top : top + h * scale, left : left + w * scale] = tile
    return Image.fromarray(sheet[:, :, 0] if c == 1 else sheet)
