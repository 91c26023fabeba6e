"""Restorers, and six images of two classes."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from synthaug.degradations import Blur, Inpainting
from synthaug.synthesizers import ColdDiffusion
from synthaug.synthesizers.cold._colors import ColorMixture
from tests.checkpoints import tiny_unet

NAMES = ("ant", "bee")


class Real:
    """Six images of 8x8 pixels, of two classes."""

    classes: tuple[str, ...] = NAMES
    image_shape = (3, 8, 8)
    fingerprint = "real"

    def __init__(self, seed: int = 0) -> None:
        self.targets = [0, 1, 0, 1, 0, 1]
        generator = torch.Generator().manual_seed(seed)
        self.pixels = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8, generator=generator)

    def __len__(self) -> int:
        return len(self.targets)

    def read(self, indices: Any) -> Tensor:
        return self.pixels[torch.tensor(np.asarray(indices))]


def tiny(**settings: Any) -> ColdDiffusion:
    """A random network of little size."""
    given = {
        "network": tiny_unet(num_classes=None, channels=3),
        "degradation": Blur(num_levels=10, kernel_size=5),
        "image_shape": (3, 8, 8),
        "classes": NAMES,
        **settings,
    }
    return ColdDiffusion(**given)


def generator(**settings: Any) -> ColdDiffusion:
    """One that generates, from colors around 0.1, -0.2 and 0.3."""
    colors = ColorMixture(
        weights=np.ones(1),
        means=np.array([[0.1, -0.2, 0.3]]),
        covariances=0.01 * np.eye(3)[None] + 0.005,
    )
    blur = Blur(num_levels=6, kernel_size=5, padding="circular", exact_mean=True)
    return tiny(**{"degradation": blur, "colors": colors, "classes": ("image",), **settings})


def inpainter(channels: int = 3, network: Any = None) -> ColdDiffusion:
    return ColdDiffusion(
        network=network or tiny_unet(num_classes=None, channels=channels).requires_grad_(False),
        degradation=Inpainting(num_levels=10, std_step=0.3),
        image_shape=(channels, 8, 8),
    )
