"""Degradations with something random: masks, snow, and the images of another set."""

import hashlib
import math
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor

from synthaug._images.source import ImageSource
from synthaug._noise import Streams, rand, randint, randn
from synthaug._pixels import to_images
from synthaug._support.arguments import check_at_least, check_choice, check_positive
from synthaug._types import JSON, Images, ImageShape
from synthaug.degradations._base import AbstractDegradation, Leaves, Realization


@final
@dataclass(frozen=True, kw_only=True)
class Inpainting(AbstractDegradation):
    """Loses a hole that grows: level s multiplies s Gaussian masks.

        D(x, s) = a_s x + (1 - a_s) u
        a_s(r) = prod_{i < s} 1 - exp(-r^2 / (2 b_i^2)),    b_i = std_step * (i + initial_std)

    at distance r from the center, whose pixel is lost at level 1. The defaults are those of the
    paper for CIFAR-10; it generates with 750 levels, `std_step=0.05`, `center="middle"`,
    `fill="color"`.
    """

    num_levels: int = 50
    std_step: float = 0.1
    """Growth of the mask's standard deviation per level, in pixels."""
    initial_std: float = 1.0
    """Standard deviation of the first mask, in units of `std_step`."""
    center: Literal["random", "middle"] = "random"
    """Any pixel, drawn uniformly; or always pixel ((H - 1) // 2, (W - 1) // 2)."""
    fill: Literal["gray", "color"] = "gray"
    """What u is: 0, the middle gray of [-1, 1]; or one color for the whole image, each channel
    drawn uniformly from [-0.5, 0.5]. With a color the last level is exactly u, so that images can
    be generated."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(std_step=self.std_step, initial_std=self.initial_std)
        check_choice(("random", "middle"), center=self.center)
        check_choice(("gray", "color"), fill=self.fill)

    def realize(self, generators: Streams, image_shape: ImageShape) -> Realization:
        """`center`, int64 (n, 2), and `color`, float32 (n, C)."""
        c, height, width = image_shape
        drawn: dict[str, Tensor] = {}
        if self.center == "random":
            drawn["center"] = torch.stack([randint(generators, n) for n in (height, width)], 1)
        if self.fill == "color":
            drawn["color"] = rand(generators, (c,)) - 0.5
        return drawn

    def leaves(self, image_shape: ImageShape) -> Leaves:
        """Nothing, where a color takes the image's place."""
        del image_shape
        return "nothing" if self.fill == "color" else "image"

    def _degrade(self, x: Images, s: Tensor, realization: Realization) -> Images:
        height, width = x.shape[-2:]
        y, x_axis = (
            torch.arange(side, device=x.device, dtype=torch.int64) for side in (height, width)
        )
        if self.center == "random":
            center = realization["center"]
        else:
            middle = [[(height - 1) // 2, (width - 1) // 2]]
            center = torch.tensor(middle, device=x.device, dtype=torch.int64)
        row, column = center.T[:, :, None]
        squared = ((y - row) ** 2)[:, :, None] + ((x_axis - column) ** 2)[:, None, :]
        largest = (height - 1) ** 2 + (width - 1) ** 2
        kept = _kept(self, largest, x.dtype, x.device)[s[:, None, None], squared][:, None]
        if self.fill == "gray":
            return kept * x
        return kept * x + (1 - kept) * realization["color"].to(x.dtype)[:, :, None, None]


@lru_cache(maxsize=8)
def _kept(inpainting: Inpainting, largest: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """a_s by level and squared distance, (T + 1, largest + 1): distances of pixels are roots of
    whole numbers, so this is the whole product for any center."""
    with torch.inference_mode(False):
        squared = torch.arange(largest + 1, dtype=torch.float64, device="cpu")
        steps = torch.arange(inpainting.num_levels, dtype=torch.float64, device="cpu")
        std = inpainting.std_step * (steps + inpainting.initial_std)
        masks = 1 - torch.exp(-squared / (2 * std[:, None] ** 2))
        clean = torch.ones(1, largest + 1, dtype=torch.float64, device="cpu")
        table = torch.cat([clean, masks.cumprod(0)])
        if inpainting.fill == "color":
            table[-1] = 0
        return table.to(device=device, dtype=dtype)


@final
@dataclass(frozen=True, kw_only=True)
class Snow(AbstractDegradation):
    """Snow after ImageNet-C (Hendrycks and Dietterich 2019), thicker at every level.

    A coarse Gaussian field is cut at a threshold, blurred along one axis as if it fell, and added
    together with its half turn; the image loses contrast towards white. Pairs of settings go
    linearly from level 1 to level T. Every level is computed from the clean image, not from the
    level before. Sums are clipped to the range of images, as the recipe has it.
    """

    num_levels: int = 200
    field_mean: float = 0.55
    field_std: float = 0.3
    zoom: float = 2.5
    """Size of a flake, in pixels."""
    threshold: tuple[float, float] = (1.15, 0.7)
    """Only what exceeds it becomes snow."""
    motion_radius: int = 11
    """A flake is drawn out over at most twice as many pixels."""
    motion_std: tuple[float, float] = (0.05, 16.0)
    """Of the one-sided Gaussian that draws it out, in pixels."""
    brightness: tuple[float, float] = (0.95, 0.4)
    """Share of the image in the mixture with its whitened version."""
    whiten: bool = True
    """Without it the image keeps its contrast under the snow."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(
            field_std=self.field_std,
            motion_radius=self.motion_radius,
            motion_std=min(self.motion_std),
        )
        check_at_least(1, zoom=self.zoom)

    def realize(self, generators: Streams, image_shape: ImageShape) -> Realization:
        """`field`, float32 (n, 1, H, W), and `vertical`, bool (n,): along which axis it falls."""
        _, height, width = image_shape
        coarse = [1, math.ceil(height / self.zoom), math.ceil(width / self.zoom)]
        drawn = self.field_mean + self.field_std * randn(generators, coarse)
        grown = F.interpolate(drawn, size=(height, width), mode="bilinear", align_corners=False)
        return {"field": grown, "vertical": rand(generators, ()) < 0.5}

    def at(self, ends: tuple[float, float], s: Tensor) -> Tensor:
        """The value of a setting at levels s >= 1, float64."""
        share = (s.double() - 1) / max(1, self.num_levels - 1)
        return ends[0] + share * (ends[1] - ends[0])

    def _degrade(self, x: Images, s: Tensor, realization: Realization) -> Images:
        flakes = realization["field"].to(x.dtype)
        threshold = self.at(self.threshold, s).to(x.dtype).view(-1, 1, 1, 1)
        layer = torch.where(flakes > threshold, flakes, 0).clamp(0, 1)
        across, down = (_motion(self, side, x.dtype, x.device)[s] for side in x.shape[:-3:-1])
        layer = torch.where(
            realization["vertical"].view(-1, 1, 1, 1),
            down[:, None] @ layer,
            layer @ across[:, None].mT,
        )
        unit = (x + 1) / 2  # the recipe is written for [0, 1]
        if self.whiten:
            share = self.at(self.brightness, s).to(x.dtype).view(-1, 1, 1, 1)
            gray = unit
            if x.shape[1] == 3:
                weights = torch.tensor([0.299, 0.587, 0.114], dtype=x.dtype, device=x.device)
                gray = (unit * weights.view(3, 1, 1)).sum(1, keepdim=True)
            unit = share * unit + (1 - share) * torch.maximum(unit, 1.5 * gray + 0.5)
        return (unit + layer + layer.flip(-1, -2)).clamp(0, 1) * 2 - 1


@lru_cache(maxsize=8)
def _motion(snow: Snow, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The motion blur of every level along one axis, (T + 1, size, size); level 0 is not used."""
    with torch.inference_mode(False):
        taps = torch.arange(2 * snow.motion_radius + 1, dtype=torch.float64, device="cpu")
        levels = torch.arange(snow.num_levels + 1, dtype=torch.int64, device="cpu").clamp(min=1)
        kernels = torch.exp(-0.5 * (taps / snow.at(snow.motion_std, levels)[:, None]) ** 2)
        kernels /= kernels.sum(1, keepdim=True)
        pixels = torch.arange(size, dtype=torch.int64, device="cpu")
        source = (pixels[:, None] + taps.long()).clamp(max=size - 1)
        table = torch.zeros(len(levels), size, size, dtype=torch.float64, device="cpu")
        weights = kernels[:, None].expand(-1, size, -1)
        table = table.scatter_add(2, source.expand(len(levels), -1, -1), weights)
        return table.to(device=device, dtype=dtype)


class AbstractMixing(AbstractDegradation):
    """D(x, s) = sqrt(a_s) x + sqrt(1 - a_s) y on the cosine schedule, which ends at y itself."""

    def _degrade(self, x: Images, s: Tensor, realization: Realization) -> Images:
        share = (s.to(x.dtype) / self.num_levels + 0.008) / 1.008
        first = math.cos(0.008 / 1.008 * math.pi / 2)
        signal = (torch.cos(share * math.pi / 2) / first).clamp(0, 1)
        signal = torch.where(s == self.num_levels, 0, signal).view(-1, 1, 1, 1)
        return signal * x + (1 - signal**2).sqrt() * realization["other"].to(x.dtype)

    def leaves(self, image_shape: ImageShape) -> Leaves:
        """Nothing: the last level is the other image, or the noise."""
        del image_shape
        return "nothing"


@final
@dataclass(frozen=True, kw_only=True)
class GaussianNoise(AbstractMixing):
    """The "hot" case to compare with: noise on the cosine schedule, held for a trajectory."""

    num_levels: int = 200

    def realize(self, generators: Streams, image_shape: ImageShape) -> Realization:
        """`other`, float32 (n, C, H, W): standard normal noise."""
        return {"other": randn(generators, image_shape)}


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Animorphosis(AbstractMixing):
    """Turns an image into one of another set, drawn uniformly.

    A checkpoint records which set it was, but does not hold its images: pass the degradation again
    to `from_pretrained`.
    """

    others: Any = field(repr=False)
    """The other set: has `read(indices)`, uint8 (n, C, H, W), and a length."""
    num_levels: int = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        if not len(self.others):
            raise ValueError("`others` holds no images.")

    def realize(self, generators: Streams, image_shape: ImageShape) -> Realization:
        """`other`, float32 (n, C, H, W): images of the other set."""
        pixels = self._images.pixels(randint(generators, len(self.others)).numpy())
        if tuple(pixels.shape[1:]) != tuple(image_shape):
            raise ValueError(
                f"`others` holds images of shape {tuple(pixels.shape[1:])}, but the images to "
                f"degrade have {tuple(image_shape)}. Load both in one size."
            )
        return {"other": to_images(pixels)}

    @cached_property
    def fingerprint(self) -> str:
        """Identifies the other set."""
        if self._images.fingerprint is not None:
            return self._images.fingerprint
        hashed = hashlib.blake2b(digest_size=16)
        for block in self._images.blocks():
            hashed.update(block.numpy().tobytes())
        return hashed.hexdigest()

    @cached_property
    def _images(self) -> ImageSource:
        return ImageSource.open(self.others, "`others`")

    def config(self) -> dict[str, JSON]:
        """The fingerprint stands in for the other set."""
        settings: dict[str, JSON] = {"others": self.fingerprint, "num_levels": self.num_levels}
        return {"name": "Animorphosis", **settings}
