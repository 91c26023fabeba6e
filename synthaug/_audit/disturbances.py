"""Ways in which a copy may differ from its original: what the audit's power is measured with."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from synthaug._noise import counter_rng
from synthaug._pixels import to_pil
from synthaug._types import Features, Pixels


@dataclass(frozen=True)
class Disturbance:
    """A named change of an image."""

    name: str
    """Shown in reports."""
    required: bool
    """Whether an audit that misses such copies must not say "pass"."""
    apply: Callable[[Any, int], Any]
    """uint8 (n, C, H, W), or features (n, d), and a seed to the same shape."""


def disturbances(image_shape: tuple[int, int, int]) -> list[Disturbance]:
    """The kinds that fit images of `image_shape` (C, H, W).

    Required are those that leave the image as it is, mirror it, or add noise that a viewer hardly
    notices. JPEG at quality 50 is not among them, since in images of a few pixels it is no small
    change. Shifts grow with the image.
    """
    side = max(image_shape[1:])
    shifts = sorted({max(1, round(side / 16)), max(1, round(side / 8))})
    return [
        Disturbance("unchanged", True, lambda pixels, seed: pixels),
        Disturbance("mirrored", True, lambda pixels, seed: pixels.flip(-1)),
        Disturbance("noise, sigma 8", True, lambda pixels, seed: _noise(pixels, 8, seed)),
        Disturbance("JPEG, quality 50", False, lambda pixels, seed: jpeg(pixels, 50)),
        Disturbance("brightness x 1.2", False, lambda pixels, seed: _scaled(pixels, 1.2)),
        Disturbance("blur, sigma 1", False, lambda pixels, seed: _blur(pixels)),
        *(Disturbance(f"shift, {step} px", False, _shift_by(step)) for step in shifts),
        Disturbance("crop of 80 %", False, lambda pixels, seed: _crop(pixels, 0.8)),
        Disturbance("noise, sigma 25", False, lambda pixels, seed: _noise(pixels, 25, seed)),
    ]


def vector_disturbances(usual: float) -> list[Disturbance]:
    """The kinds for features, whose images are not given.

    Args:
        usual: How far training images are from each other, as a median.
    """

    def noisy(share: float) -> Callable[[Any, int], Any]:
        def add(vectors: Features, seed: int) -> Features:
            noise = counter_rng(seed, 0).standard_normal(vectors.shape, np.float32)
            length = np.linalg.norm(noise, axis=1, keepdims=True)
            return vectors + np.float32(share * usual) * noise / length

        return add

    return [
        Disturbance("unchanged", True, lambda vectors, seed: vectors),
        Disturbance("moved by 0.1 of the distance to a neighbour", True, noisy(0.1)),
        Disturbance("moved by 0.3 of the distance to a neighbour", False, noisy(0.3)),
    ]


def _rounded(images: Tensor) -> Pixels:
    return images.round().clamp(0, 255).to(torch.uint8)


def _noise(pixels: Pixels, sigma: float, seed: int) -> Pixels:
    noise = counter_rng(seed, 0).standard_normal(pixels.shape, np.float32)
    return _rounded(pixels.float() + sigma * torch.from_numpy(noise))


def _scaled(pixels: Pixels, factor: float) -> Pixels:
    return _rounded(pixels.float() * factor)


def _blur(pixels: Pixels) -> Pixels:
    x = torch.arange(-2, 3, dtype=torch.float32, device="cpu")
    kernel = torch.exp(-(x**2) / 2)
    kernel = kernel / kernel.sum()
    c = pixels.shape[1]
    padded = F.pad(pixels.float(), (2, 2, 2, 2), mode="replicate")
    return _rounded(F.conv2d(padded, (kernel[:, None] * kernel).expand(c, 1, 5, 5), groups=c))


def _shift_by(step: int) -> Callable[[Pixels, int], Pixels]:
    def shift(pixels: Pixels, seed: int) -> Pixels:
        del seed
        h, w = pixels.shape[-2:]
        return F.pad(pixels.float(), (step, 0, step, 0), mode="replicate")[..., :h, :w].to(
            torch.uint8
        )

    return shift


def _crop(pixels: Pixels, share: float) -> Pixels:
    h, w = pixels.shape[-2:]
    ch, cw = max(1, round(h * share)), max(1, round(w * share))
    top, left = (h - ch) // 2, (w - cw) // 2
    inner = pixels[..., top : top + ch, left : left + cw].float()
    return _rounded(F.interpolate(inner, (h, w), mode="bilinear", align_corners=False))


def jpeg(pixels: Pixels, quality: int) -> Pixels:
    """Images uint8 (n, C, H, W), compressed and decoded again."""
    decoded = []
    for image in pixels:
        buffer = io.BytesIO()
        to_pil(image).save(buffer, "JPEG", quality=quality)
        array = np.asarray(Image.open(buffer))
        decoded.append(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))  # HWC => CHW
    return torch.from_numpy(np.stack(decoded))
