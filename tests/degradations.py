"""Every degradation that comes with the package, and one of one's own."""

from typing import Any

import torch
from torch import Tensor

from synthaug.degradations import (
    Animorphosis,
    Blur,
    Custom,
    Decolorization,
    GaussianNoise,
    Inpainting,
    Snow,
    SuperResolution,
)


class Others:
    """Five images of another set."""

    def __init__(self, size: int = 16) -> None:
        generator = torch.Generator().manual_seed(5)
        self.pixels = torch.randint(
            0, 256, (5, 3, size, size), dtype=torch.uint8, generator=generator
        )

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, indices: Any) -> Tensor:
        return self.pixels[torch.as_tensor(indices)]


def fade(x: Tensor, s: Tensor, realization: Any) -> Tensor:
    return x * (1 - s / 6) + realization["shade"][:, :, None, None] * s / 6


ALL = [
    Blur(num_levels=8),
    Blur(num_levels=8, padding="circular", exact_mean=True, schedule="constant", std=3.0),
    Blur(num_levels=8, kernel_size=15, schedule="exponential", std=1.0, rate=0.1),
    Inpainting(num_levels=8),
    Inpainting(num_levels=8, center="middle", fill="color", std_step=0.5),
    SuperResolution(num_levels=4),
    Snow(num_levels=8),
    Snow(num_levels=8, whiten=False, zoom=1.0),
    Decolorization(num_levels=8),
    GaussianNoise(num_levels=8),
    Animorphosis(others=Others(), num_levels=8),
    Custom(
        name="fade",
        num_levels=6,
        function=fade,
        realization=lambda g, shape: {"shade": torch.rand(shape[0], generator=g)},
        remains="nothing",
    ),
]
ids = [
    "blur",
    "blur to the mean",
    "exponential blur",
    "random hole",
    "hole in a color",
    "super-resolution",
    "snow",
    "snow of single pixels",
    "decolorization",
    "noise",
    "animorphosis",
    "custom",
]
