"""Augmentation of whole batches, each image with its own draw."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, final, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from synthaug._support import arguments, devices
from synthaug._types import ImageShape, Pixels

Augment: TypeAlias = Callable[[Tensor], Tensor]
"""Pixels uint8 (n, C, H, W) => pixels uint8 (n, C, H, W), random by torch's global stream."""

AugmentName: TypeAlias = Literal[
    "standard", "affine", "randaugment", "trivialaugment", "cutmix", "mixup"
]
"""Augmentations by name; all but the second begin with the first."""


@final
@dataclass(frozen=True, kw_only=True)
class StandardAugment:
    """The usual augmentation of small images: random shifts, and mirroring if it keeps the class.

    StandardAugment(padding=4)                          # handwritten digits of 28x28
    StandardAugment(padding=4, horizontal_flip=True)    # CIFAR

    Every image is padded and cropped to its old size at a random place, and mirrored left to right
    with probability 1/2 if `horizontal_flip`.
    """

    padding: int
    """Largest shift in pixels, in each direction."""
    horizontal_flip: bool = False
    """Mirror half of the images. Wrong for digits, letters and organs."""
    fill: int = 0
    """Level of the pixels that come in at the border, 0 to 255."""

    def __post_init__(self) -> None:
        arguments.check_fields(self)
        arguments.check_not_negative(padding=self.padding)
        _check_fill(self.fill)

    def __call__(self, pixels: Pixels) -> Pixels:
        """Draws anew for every image, on the CPU, so that all devices see the same images."""
        n, _, height, width = pixels.shape
        drawn = torch.randint(0, 2 * self.padding + 1, (2, n), dtype=torch.int64, device="cpu")
        top, left = devices.sent(drawn, pixels.device)
        padded = F.pad(pixels, [self.padding] * 4, value=self.fill)
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # views, nothing is copied yet
        shifted = windows[torch.arange(n, device=pixels.device, dtype=torch.int64), :, top, left]
        if not self.horizontal_flip:
            return shifted
        mirrored = devices.sent(_uniform(n) < 0.5, pixels.device)
        return torch.where(mirrored[:, None, None, None], shifted.flip(-1), shifted)


@final
@dataclass(frozen=True, kw_only=True)
class AffineAugment:
    """Small random shifts, turns and changes of size, between the pixels: for very small images.

    AffineAugment()                                            # handwritten digits of 8x8
    AffineAugment(max_shift=1, max_rotation=0, max_scale=0)    # shifts only, by up to a pixel

    On 8x8 pixels a shift by whole pixels loses strokes at the border. Every draw is uniform; images
    are resampled bilinearly.
    """

    max_shift: float = 0.5
    """Largest shift in pixels, in each direction."""
    max_rotation: float = 10.0
    """Largest turn about the center, in degrees, either way."""
    max_scale: float = 0.1
    """Largest change of size: 0.1 makes images 10 % larger or smaller at most."""
    horizontal_flip: bool = False
    """Mirror half of the images. Wrong for digits, letters and organs."""
    fill: int = 0
    """Level of what comes in at the border, 0 to 255."""

    def __post_init__(self) -> None:
        arguments.check_fields(self)
        arguments.check_finite(0, max_shift=self.max_shift)
        arguments.check_between(0, 180, " degrees", max_rotation=self.max_rotation)
        arguments.check_within("[0, 1)", max_scale=self.max_scale)
        _check_fill(self.fill)

    def __call__(self, pixels: Pixels) -> Pixels:
        """Draws anew for every image, on the CPU, so that all devices see the same images."""
        n, _, height, width = pixels.shape
        turn, resize, right, down = 2 * _uniform(4, n) - 1
        angle = turn * math.radians(self.max_rotation)
        cos, sin = angle.cos(), angle.sin()
        # `affine_grid` says where each pixel of the result comes from, in halves of the image.
        to_x = [cos, sin * height / width, right * self.max_shift * 2 / width]
        to_y = [-sin * width / height, cos, down * self.max_shift * 2 / height]
        to_source = torch.stack([torch.stack(to_x, dim=1), torch.stack(to_y, dim=1)], dim=1)
        to_source[:, :, :2] /= (1 + resize * self.max_scale)[:, None, None]
        if self.horizontal_flip:
            to_source[:, :, 0] *= torch.where(_uniform(n) < 0.5, -1, 1)[:, None]
        grid = F.affine_grid(
            devices.sent(to_source, pixels.device), list(pixels.shape), align_corners=False
        )
        levels = F.grid_sample(pixels.float() - self.fill, grid, align_corners=False) + self.fill
        return levels.round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True, kw_only=True)
class Mixture(ABC):
    """Mixes each image with another one of its batch, by a share that Beta(alpha, alpha) draws."""

    first: Augment | None = None
    """What happens to the images before."""
    alpha: float = 1.0
    """1 draws the share uniformly, as both papers do on CIFAR-10."""

    def __post_init__(self) -> None:
        arguments.check_positive(alpha=self.alpha)
        arguments.check_finite(0, alpha=self.alpha)

    def __call__(self, pixels: Pixels) -> Pixels:
        """The images alone; training also needs what `mix` says about labels."""
        return self.mix(pixels)[0]

    def mix(self, pixels: Pixels) -> tuple[Pixels, Tensor, Tensor]:
        """Returns mixed images, the partner of each, int64 (n,), and the share of its own that each
        image keeps, float32 (n,). It draws on the CPU, so that all devices see the same images."""
        if self.first is not None:
            pixels = apply_augment(self.first, pixels)
        partner = torch.randperm(len(pixels), dtype=torch.int64, device="cpu")
        shape = torch.tensor(self.alpha, dtype=torch.float32, device="cpu")
        kept = torch.distributions.Beta(shape, shape).sample((len(pixels),))
        partner = devices.sent(partner, pixels.device)
        mixed, own = self._mixed(pixels, pixels[partner], kept)
        return mixed, partner, devices.sent(own, pixels.device)

    @abstractmethod
    def _mixed(self, pixels: Pixels, others: Pixels, kept: Tensor) -> tuple[Pixels, Tensor]:
        """Returns images that keep about such shares, (n,), and the shares that they kept."""


@final
@dataclass(frozen=True, kw_only=True)
class CutMix(Mixture):
    """Part of each image comes from another image of the batch, and so does that part of its label.

    Yun et al. 2019, https://arxiv.org/abs/1905.04899: the share kept is drawn from
    Beta(alpha, alpha), once per image; a rectangle of the rest's area, its center uniform, is cut
    at the border.

    CutMix(first=StandardAugment(padding=4, horizontal_flip=True))
    """

    def _mixed(self, pixels: Pixels, others: Pixels, kept: Tensor) -> tuple[Pixels, Tensor]:
        side = (1 - kept).sqrt()
        sides = []
        for length in pixels.shape[2:]:
            center = _uniform(len(pixels)) * length
            low = (center - side * length / 2).round().clamp(0, length)[:, None]
            high = (center + side * length / 2).round().clamp(0, length)[:, None]
            at = torch.arange(length, dtype=torch.int64, device="cpu")
            sides.append((at >= low) & (at < high))
        cut = sides[0][:, :, None] & sides[1][:, None, :]
        mixed = torch.where(devices.sent(cut[:, None], pixels.device), others, pixels)
        return mixed, 1 - cut.float().mean((1, 2))  # the share after cutting at the border


@final
@dataclass(frozen=True, kw_only=True)
class MixUp(Mixture):
    """Each image is a weighted mean with another image of the batch, and so is its label.

    Zhang et al. 2018, https://arxiv.org/abs/1710.09412: the weight is drawn from
    Beta(alpha, alpha), once per image. Means are rounded to whole levels.

    MixUp(first=StandardAugment(padding=4, horizontal_flip=True))
    """

    def _mixed(self, pixels: Pixels, others: Pixels, kept: Tensor) -> tuple[Pixels, Tensor]:
        weight = devices.sent(kept, pixels.device)[:, None, None, None]
        return torch.lerp(others.float(), pixels.float(), weight).round().to(torch.uint8), kept


@final
@dataclass(frozen=True, kw_only=True)
class Chain:
    """One augmentation after the other.

    Chain(steps=(StandardAugment(padding=4), v2.RandAugment()))
    """

    steps: tuple[Augment, ...]
    """In their order; torchvision's v2 transforms are called image by image."""

    def __call__(self, pixels: Pixels) -> Pixels:
        """Applies all steps to a batch."""
        for step in self.steps:
            pixels = apply_augment(step, pixels)
        return pixels


def _check_fill(fill: int) -> None:
    if not 0 <= fill <= 255:
        raise ValueError(f"`fill` must be a level from 0 to 255, got {fill}.")


def _uniform(*shape: int) -> Tensor:
    """Numbers of [0, 1), float32, drawn on the CPU, so that all devices see the same images."""
    return torch.rand(shape, dtype=torch.float32, device="cpu")


def standard_augment(image_shape: ImageShape, *, horizontal_flip: bool) -> Augment:
    """The usual augmentation for images of shape (C, H, W).

    Below 16 pixels a side `AffineAugment()`, else `StandardAugment` with shifts by up to 1/8 of the
    shorter side. Whether a mirrored image keeps its class, only the user can know.
    """
    side = min(image_shape[1:])
    if side < 16:
        return AffineAugment(horizontal_flip=horizontal_flip)
    return StandardAugment(padding=round(side / 8), horizontal_flip=horizontal_flip)


def named_augment(name: Any, image_shape: ImageShape, *, horizontal_flip: bool) -> Augment:
    """The augmentation of a name for images of shape (C, H, W); another name is a ValueError."""
    from torchvision.transforms import v2

    standard = standard_augment(image_shape, horizontal_flip=horizontal_flip)
    named: dict[Any, Augment] = {
        "standard": standard,
        "affine": AffineAugment(horizontal_flip=horizontal_flip),
        "randaugment": Chain(steps=(standard, v2.RandAugment())),
        "trivialaugment": Chain(steps=(standard, v2.TrivialAugmentWide())),
        "cutmix": CutMix(first=standard),
        "mixup": MixUp(first=standard),
    }
    if name not in named:
        known = ", ".join(map(repr, get_args(AugmentName)))
        raise ValueError(f"`augment` must be {known}, a function or None, got {name!r}.")
    return named[name]


def apply_augment(augment: Augment, pixels: Pixels) -> Pixels:
    """Augments a batch, each image with its own draw.

    torchvision's v2 transforms draw once per call, for all images alike, so those are called image
    by image, unless they say with `draws_per_image` that they draw for each.

    Raises:
        ValueError: If the result is not uint8 of the shape it had.
    """
    from torchvision.transforms import v2

    # A foreign transform does not have the attribute by which ours say how they draw.
    if isinstance(augment, v2.Transform) and not getattr(augment, "draws_per_image", False):
        result = torch.stack([augment(image) for image in pixels])
    else:
        result = augment(pixels)
    if result.dtype != torch.uint8 or result.shape != pixels.shape:
        raise ValueError(
            f"`augment` made {result.dtype} {tuple(result.shape)} out of uint8 "
            f"{tuple(pixels.shape)}; it must keep both. Leave conversion to float, normalization "
            "and resizing out of it."
        )
    return result
