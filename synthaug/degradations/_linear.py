"""Degradations that are linear in the image: blur, loss of resolution, loss of color.

The first two act on rows and columns alike and apart, D(x, s) = A_s x B_s^T with one small matrix
per level and axis. All steps up to level s are multiplied into A_s once, so any level costs the
same: two small matrix products per image, where the composition of s convolutions grows with s.
"""

import abc
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor

from synthaug._support.arguments import check_choice, check_positive
from synthaug._types import Images, ImageShape
from synthaug.degradations._base import AbstractDegradation, Leaves, Realization


class AbstractSeparable(AbstractDegradation):
    """D(x, s) = A_s x B_s^T, with matrices that depend on level and side length alone."""

    @abc.abstractmethod
    def step_matrices(self, size: int) -> Tensor:
        """The steps along an axis of `size` pixels, float64 (T, size, size), first step first."""

    def matrices(self, size: int) -> Tensor:
        """A_0 ... A_T, float64 (T + 1, size, size): products of the steps, A_0 the identity."""
        product = torch.eye(size, dtype=torch.float64, device="cpu")
        table = [product]
        for step in self.step_matrices(size):
            product = step @ product
            table.append(product)
        return torch.stack(table)

    def _degrade(self, x: Images, s: Tensor, realization: Realization) -> Images:
        del realization
        columns = _matrices(self, x.shape[-1], x.dtype, x.device)[s]
        rows = _matrices(self, x.shape[-2], x.dtype, x.device)[s]
        return _along_last(_along_last(x, columns).mT, rows).mT


def _along_last(x: Images, matrices: Tensor) -> Images:
    """Multiplies every line of the last axis; one matrix (1, w, w), or one per image (n, w, w)."""
    n, c, h, w = x.shape
    lines = x.reshape(n, c * h, w)
    shared = len(matrices) == 1
    return (lines @ (matrices[0] if shared else matrices).mT).view(n, c, h, w)


@lru_cache(maxsize=32)
def _matrices(
    degradation: AbstractSeparable, size: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    with torch.inference_mode(False):  # the table outlives a caller's inference mode
        return degradation.matrices(size).to(device=device, dtype=dtype)


@final
@dataclass(frozen=True, kw_only=True)
class Blur(AbstractSeparable):
    """Gaussian blur, composed: level s applies the kernels of steps 0 to s - 1 one after another.

    The defaults are those of the paper for CIFAR-10. Kernels compound: the variance of level s is
    the sum over its steps, and that of a kernel cut off at `kernel_size` is below its nominal one.
    With circular padding every level keeps the mean of each channel, and so does Algorithm 2,
    whatever the network.
    """

    num_levels: int = 50
    kernel_size: int = 11
    """Taps of every kernel along each axis, odd."""
    std: float = 0.35
    """Standard deviation of the kernel of step 0, in pixels."""
    schedule: Literal["constant", "linear", "exponential"] = "linear"
    """Step i has `std`, `std + rate * i`, or `std * exp(rate * i)`."""
    rate: float = 0.01
    padding: Literal["reflect", "circular", "replicate"] = "reflect"
    """What lies beyond the border: the image mirrored, repeated, or its border continued. The
    paper's code reflects CIFAR-10 and CelebA, and repeats MNIST and what it generates from."""
    exact_mean: bool = False
    """The last level is exactly the mean of each channel, so that images can be generated."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(std=self.std)
        check_choice(("constant", "linear", "exponential"), schedule=self.schedule)
        check_choice(("reflect", "circular", "replicate"), padding=self.padding)
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ValueError(f"`kernel_size` must be odd and positive, got {self.kernel_size}.")
        check_positive(**{"std of the last step": self.step_std(self.num_levels - 1)})

    def step_std(self, i: int) -> float:
        """Nominal standard deviation of step i, counted from 0, in pixels."""
        if self.schedule == "constant":
            return self.std
        if self.schedule == "linear":
            return self.std + self.rate * i
        return self.std * math.exp(self.rate * i)

    def step_kernel(self, i: int) -> Tensor:
        """The kernel of step i along one axis, float64 (kernel_size,), of sum 1."""
        radius = self.kernel_size // 2
        taps = torch.arange(self.kernel_size, dtype=torch.float64, device="cpu") - radius
        kernel = torch.exp(-0.5 * (taps / self.step_std(i)) ** 2)
        return kernel / kernel.sum()

    def step_matrices(self, size: int) -> Tensor:
        """One convolution per step, as a matrix."""
        radius = self.kernel_size // 2
        if self.padding == "reflect" and radius >= size:
            raise ValueError(
                f"`kernel_size` {self.kernel_size} is too large for images of {size} pixels "
                f"with reflected edges. Use at most {2 * size - 1}, or padding 'circular' or "
                "'replicate'."
            )
        source = torch.arange(size, dtype=torch.int64, device="cpu")[:, None] + torch.arange(
            -radius, radius + 1, dtype=torch.int64, device="cpu"
        )
        if self.padding == "circular":
            source = source % size
        elif self.padding == "replicate":
            source = source.clamp(0, size - 1)
        else:
            source = source.abs()
            source = torch.where(source < size, source, 2 * (size - 1) - source)
        kernels = torch.stack([self.step_kernel(i) for i in range(self.num_levels)])
        steps = torch.zeros(self.num_levels, size, size, dtype=torch.float64, device="cpu")
        weights = kernels[:, None].expand(-1, size, -1)
        return steps.scatter_add(2, source.expand(self.num_levels, -1, -1), weights)

    def matrices(self, size: int) -> Tensor:
        """Returns the matrices of all levels, the last one replaced by the mean on request."""
        table = super().matrices(size)
        if self.exact_mean:
            table[-1] = 1 / size
        return table

    def leaves(self, image_shape: ImageShape) -> Leaves:
        """One color, if the last level is the exact mean."""
        del image_shape
        return "color" if self.exact_mean else "image"


@final
@dataclass(frozen=True, kw_only=True)
class SuperResolution(AbstractSeparable):
    """Loss of resolution by factors of two: step s halves the size that step s - 1 left.

    Every step resizes the image to size / 2^s (bicubic, not antialiased) and back (nearest-exact),
    as torch does. The size must be a multiple of 2^num_levels; down to one pixel, images can be
    generated.
    """

    num_levels: int = 3

    def step_matrices(self, size: int) -> Tensor:
        """Returns the effect of torch's `interpolate` on each pixel alone."""
        if size % 2**self.num_levels:
            raise ValueError(
                f"Images of {size} pixels cannot be halved {self.num_levels} times. Use fewer "
                "levels, or another image size."
            )
        # Columns are images of one pixel.
        pixels = torch.eye(size, dtype=torch.float64, device="cpu")[None, None]
        steps = []
        for s in range(1, self.num_levels + 1):
            small = F.interpolate(pixels, size=(size >> s, size), mode="bicubic")
            steps.append(F.interpolate(small, size=(size, size), mode="nearest-exact")[0, 0])
        return torch.stack(steps)

    def leaves(self, image_shape: ImageShape) -> Leaves:
        """One color, if the last level is a single pixel."""
        return "color" if max(image_shape[1:]) == 2**self.num_levels else "image"


@final
@dataclass(frozen=True, kw_only=True)
class Decolorization(AbstractDegradation):
    """Loss of color: level s keeps 1 - s / T of each pixel's difference to the mean of its
    channels. The last level is gray. For images of three channels."""

    num_levels: int = 20

    def _degrade(self, x: Images, s: Tensor, realization: Realization) -> Images:
        del realization
        if x.shape[1] != 3:
            raise ValueError(
                f"Images of {x.shape[1]} channels have no color that could be removed. Give "
                "images of 3 channels."
            )
        gray = x.mean(1, keepdim=True)
        kept = 1 - s.view(-1, 1, 1, 1).to(x.dtype) / self.num_levels
        return gray + kept * (x - gray)
