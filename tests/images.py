"""Pixels, images and noise as the guide defines them, in words other than the package's."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image


def to_images(pixels: Tensor) -> Tensor:
    """uint8 [0, 255] to float32 [-1, 1]."""
    return pixels.float() / 127.5 - 1


def to_pixels(images: Tensor) -> Tensor:
    """Float [-1, 1] to uint8 [0, 255], rounded to the nearest level."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_pil(pixels: Tensor) -> Image.Image:
    """One image, uint8 (C, H, W), as a PIL image."""
    image: Image.Image = to_pil_image(pixels)
    return image


def randn(generators: Sequence[torch.Generator], shape: Sequence[int]) -> Tensor:
    """Standard normal noise, float32 (n, *shape), one stream per row."""
    return torch.stack([torch.randn(tuple(shape), generator=g) for g in generators])


def dark_and_light(n: int) -> tuple[torch.Tensor, np.ndarray]:
    """Dark and light images of noise, in turn."""
    labels = np.arange(n) % 2
    noise = torch.randint(0, 80, (n, 1, 8, 8), generator=torch.Generator().manual_seed(n))
    return (noise + torch.from_numpy(labels * 170).view(-1, 1, 1, 1)).to(torch.uint8), labels
