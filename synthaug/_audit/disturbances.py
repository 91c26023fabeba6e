"""Ways in which a copy may differ from its original: what the audit's power is measured with.

Every planted image is changed by other random numbers from the ranges below, and every audit draws
anew by its seed. So nobody can tune a detector, or a generator, to the very changes that are
planted.
"""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from synthaug._noise import counter_rng
from synthaug._pixels import to_pil
from synthaug._types import Features, Pixels

_LARGE_ENOUGH_TO_MOVE = 16
"""In smaller images an eighth of the side is less than two pixels, and interpolation between so few
changes the image itself: of 8 x 8 digits, half of the copies that were moved lie farther from
their originals than 3 % of other digits do from theirs."""

Change = Callable[[Tensor, np.random.Generator], Tensor]
"""Changes one image, float32 (C, H, W) with values 0 to 255."""


@dataclass(frozen=True)
class Disturbance:
    """A named change of an image."""

    name: str
    """Shown in reports."""
    required: bool
    """Whether an audit that misses such copies must not say "pass"."""
    apply: Callable[[Any, int], Any]
    """uint8 (n, C, H, W), or features (n, d), and a seed to the same shape."""
    to_files: Callable[..., Image.Image] | None = None
    """For changes that come with a file: the whole image of a file, a `seed`, and the `place` of
    the copy among all, to what another file holds. `None` for other changes."""


def disturbances(side: int) -> list[Disturbance]:
    """The kinds of changed images.

    Required are those after which a viewer sees the same picture at a glance, whatever the data:
    an image saved as another file, mirrored, lighter or darker, a little noisy, or moved a little.
    The others change more of the picture, and in images of a few pixels moving does too.

    Args:
        side: Pixels on the longer side of the images.
    """
    large = side >= _LARGE_ENOUGH_TO_MOVE
    kinds: list[tuple[str, bool, Change]] = [
        ("unchanged", True, lambda x, rng: x),
        ("mirrored", True, lambda x, rng: x.flip(-1)),
        ("JPEG, quality 50 to 90", True, partial(_coded, kind="JPEG")),
        ("WebP, quality 50 to 90", True, partial(_coded, kind="WEBP")),
        ("gamma 1.2 to 1.6 or its inverse", True, _gamma),
        ("noise, sigma 4 to 12", True, lambda x, rng: _noisy(x, rng.uniform(4, 12), rng)),
        ("shift by up to an eighth", large, _shifted),
        ("crop to 0.8 to 0.95", False, _cropped),
        ("larger or smaller by up to a quarter", False, _scaled),
        ("stretched by 1.05 to 1.25", False, _stretched),
        ("turned by 3 to 12 degrees", False, _turned),
        ("contrast and brightness", False, _contrast),
        ("color channels x 0.75 to 1.25", False, _tinted),
        ("lit from one side", False, _lit),
        ("blur, sigma 0.5 to 1.2", False, lambda x, rng: _blurred(x, rng.uniform(0.5, 1.2))),
        ("sharpened", False, _sharpened),
        ("noise, sigma 15 to 25", False, lambda x, rng: _noisy(x, rng.uniform(15, 25), rng)),
        ("a patch of 0.05 to 0.2 of the area", False, _patched),
        ("two changes at once", False, _twice),
    ]
    return [
        Disturbance(name, required, _each(change, number), _on_files(change, number))
        for number, (name, required, change) in enumerate(kinds)
    ]


def _each(change: Change, number: int) -> Callable[[Pixels, int], Pixels]:
    """Applies a change to every image, each with random numbers of its own."""

    def apply(pixels: Pixels, seed: int) -> Pixels:
        changed = [
            change(image.float(), counter_rng(seed, 5, number, i)) for i, image in enumerate(pixels)
        ]
        return torch.stack(changed).round().clamp(0, 255).to(torch.uint8)

    return apply


def _on_files(change: Change, number: int) -> Callable[[Image.Image, int, int], Image.Image] | None:
    """The change of files that goes with a change, with the same random numbers as `_each`."""
    if not isinstance(change, partial):
        return None
    kind = change.keywords["kind"]

    def apply(image: Image.Image, seed: int, place: int) -> Image.Image:
        return _as_file(image, kind, counter_rng(seed, 5, number, place))

    return apply


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
        Disturbance("moved by 0.1 of the distance to a neighbor", True, noisy(0.1)),
        Disturbance("moved by 0.3 of the distance to a neighbor", False, noisy(0.3)),
    ]


def _as_file(image: Image.Image, kind: str, rng: np.random.Generator) -> Image.Image:
    """Returns the image as it comes out of a file of this format."""
    buffer, mode = io.BytesIO(), "L" if image.mode == "L" else "RGB"
    image.convert(mode).save(buffer, kind, quality=round(rng.uniform(50, 90)))
    return Image.open(buffer).convert(mode)


def _coded(image: Tensor, rng: np.random.Generator, kind: str) -> Tensor:
    array = np.array(_as_file(to_pil(image.to(torch.uint8)), kind, rng), np.float32)
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))


def _gamma(image: Tensor, rng: np.random.Generator) -> Tensor:
    exponent = rng.uniform(1.2, 1.6) ** rng.choice([-1, 1])
    return 255 * (image / 255) ** exponent


def _noisy(image: Tensor, sigma: float, rng: np.random.Generator) -> Tensor:
    return image + sigma * torch.from_numpy(rng.standard_normal(tuple(image.shape), np.float32))


def _mapped(image: Tensor, linear: list[list[float]], shift: tuple[float, float]) -> Tensor:
    """The image under an affine map of places in [-1, 1], continued by its mirror image."""
    rows = [[*row, move] for row, move in zip(linear, shift, strict=True)]
    maps = torch.tensor([rows], dtype=torch.float32, device="cpu")
    grid = F.affine_grid(maps, [1, *image.shape], align_corners=False)
    return F.grid_sample(image[None], grid, padding_mode="reflection", align_corners=False)[0]


def _shifted(image: Tensor, rng: np.random.Generator) -> Tensor:
    x, y = rng.uniform(-0.25, 0.25, 2)  # of a side of length 2
    return _mapped(image, [[1, 0], [0, 1]], (x, y))


def _cropped(image: Tensor, rng: np.random.Generator) -> Tensor:
    width, height = rng.uniform(0.8, 0.95) * np.array([rng.uniform(0.95, 1.05), 1])
    x, y = rng.uniform(-1, 1, 2) * (1 - np.array([width, height]))
    return _mapped(image, [[width, 0], [0, height]], (x, y))


def _scaled(image: Tensor, rng: np.random.Generator) -> Tensor:
    scale = rng.uniform(1.05, 1.25) ** rng.choice([-1, 1])
    return _mapped(image, [[scale, 0], [0, scale]], (0, 0))


def _stretched(image: Tensor, rng: np.random.Generator) -> Tensor:
    factors = [1 / rng.uniform(1.05, 1.25), 1.0]
    x, y = rng.permutation(factors)
    return _mapped(image, [[x, 0], [0, y]], (0, 0))


def _turned(image: Tensor, rng: np.random.Generator) -> Tensor:
    angle = math.radians(rng.uniform(3, 12)) * rng.choice([-1, 1])
    x, y = math.cos(angle), math.sin(angle)
    return _mapped(image, [[x, -y], [y, x]], (0, 0))


def _contrast(image: Tensor, rng: np.random.Generator) -> Tensor:
    return (image - 128) * rng.uniform(0.6, 1.4) + 128 + rng.uniform(-30, 30)


def _tinted(image: Tensor, rng: np.random.Generator) -> Tensor:
    return image * torch.from_numpy(rng.uniform(0.75, 1.25, (len(image), 1, 1)).astype(np.float32))


def _lit(image: Tensor, rng: np.random.Generator) -> Tensor:
    h, w = image.shape[-2:]
    angle, strength = rng.uniform(0, 2 * math.pi), rng.uniform(0.15, 0.4)
    x, y = np.linspace(-1, 1, w)[None, :], np.linspace(-1, 1, h)[:, None]
    field = 1 + strength * (math.cos(angle) * x + math.sin(angle) * y)
    return image * torch.from_numpy(field.astype(np.float32))


def _blurred(image: Tensor, sigma: float) -> Tensor:
    x = torch.arange(-3, 4, dtype=torch.float32, device="cpu")
    kernel = torch.exp(-(x**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    c = len(image)
    padded = F.pad(image[None], (3, 3, 3, 3), mode="replicate")
    return F.conv2d(padded, (kernel[:, None] * kernel).expand(c, 1, 7, 7), groups=c)[0]


def _sharpened(image: Tensor, rng: np.random.Generator) -> Tensor:
    return image + rng.uniform(0.5, 2) * (image - _blurred(image, 1))


def _patched(image: Tensor, rng: np.random.Generator) -> Tensor:
    h, w = image.shape[-2:]
    area, ratio = rng.uniform(0.05, 0.2), rng.uniform(0.5, 2)
    height = min(h, max(1, round((area * h * w * ratio) ** 0.5)))
    width = min(w, max(1, round((area * h * w / ratio) ** 0.5)))
    top, left = rng.integers(0, h - height + 1), rng.integers(0, w - width + 1)
    patched = image.clone()
    color = torch.from_numpy(rng.uniform(0, 255, (len(image), 1, 1)).astype(np.float32))
    patched[:, top : top + height, left : left + width] = color
    return patched


def _twice(image: Tensor, rng: np.random.Generator) -> Tensor:
    changes: list[Change] = [_gamma, _shifted, _cropped, _turned, _stretched, _tinted, _lit]
    for number in rng.choice(len(changes), 2, replace=False):
        image = changes[number](image, rng).clamp(0, 255)
    return image


def jpeg(pixels: Pixels, quality: int) -> Pixels:
    """Images uint8 (n, C, H, W), compressed and decoded again."""
    decoded = []
    for image in pixels:
        buffer = io.BytesIO()
        to_pil(image).save(buffer, "JPEG", quality=quality)
        array = np.asarray(Image.open(buffer))
        decoded.append(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))  # HWC => CHW
    return torch.from_numpy(np.stack(decoded))
