"""Test images made worse: how much accuracy is left on images unlike those of the training?"""

import io
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from synthaug._images.labeled import LabeledImages
from synthaug._images.source import ImageSource
from synthaug._noise import counter_rng, streams
from synthaug._pixels import to_images, to_pil, to_pixels
from synthaug._support.arguments import check_choice, check_distinct, check_some, check_whole
from synthaug._types import Pixels
from synthaug.degradations import named

_BLOCK = 512
_SIDE = 32
"""Pixels a side that the strengths of blur are meant for; larger sizes in proportion."""

Corruption: TypeAlias = Callable[[Pixels, int, int, int], Tensor]
"""Pixels, severity from 1 to 5, seed, number of the block => levels, not rounded, (n, C, H, W)."""


def _noise(pixels: Pixels, severity: int, seed: int, block: int) -> Tensor:
    sigma = (0.04, 0.06, 0.08, 0.10, 0.14)[severity - 1]
    noise = counter_rng(seed, 0, block).standard_normal(pixels.shape)
    return pixels + 255 * sigma * torch.from_numpy(noise)


def _blur(pixels: Pixels, severity: int, seed: int, block: int) -> Tensor:
    del seed, block
    side = min(pixels.shape[2:])
    sigma = (0.5, 0.75, 1.0, 1.25, 1.5)[severity - 1] * max(1.0, side / _SIDE)
    reach = max(1, min(round(3 * sigma), (side - 1) // 2))
    return F.gaussian_blur(pixels.float(), [2 * reach + 1] * 2, [sigma] * 2)


def _contrast(pixels: Pixels, severity: int, seed: int, block: int) -> Tensor:
    del seed, block
    kept = (0.75, 0.5, 0.4, 0.3, 0.2)[severity - 1]
    mean = pixels.float().mean((1, 2, 3), keepdim=True)
    return torch.lerp(mean, pixels.float(), kept)


def _jpeg(pixels: Pixels, severity: int, seed: int, block: int) -> Tensor:
    del seed, block
    quality = (60, 40, 25, 15, 10)[severity - 1]
    return torch.stack([_compressed(image, quality) for image in pixels])


def _compressed(image: Pixels, quality: int) -> Tensor:
    with io.BytesIO() as file:
        to_pil(image).save(file, "JPEG", quality=quality)
        return F.pil_to_tensor(Image.open(file))


def _degraded(kind: str, pixels: Pixels, severity: int, seed: int, block: int) -> Tensor:
    """One of our degradations, from a tenth of its levels to half of them."""
    degradation = named(kind)
    level = max(1, round(degradation.num_levels * severity / 10))
    generators = streams(
        counter_rng(seed, 1, block).integers(2**63, size=len(pixels), dtype=np.uint64)
    )
    shape = pixels.shape[1], pixels.shape[2], pixels.shape[3]
    drawn = degradation.realize(generators, shape)
    return to_pixels(degradation(to_images(pixels), level, drawn))


CORRUPTIONS: dict[str, Corruption] = {
    "noise": _noise,
    "blur": _blur,
    "contrast": _contrast,
    "jpeg": _jpeg,
    "inpainting": partial(_degraded, "inpainting"),
    "snow": partial(_degraded, "snow"),
}
"""Kinds of corruption by name: Gaussian noise and blur, less contrast, JPEG compression, a blurred
hole at a random place, and snow."""


def corruptions(
    test: Any,
    *,
    kinds: Sequence[str] = tuple(CORRUPTIONS),
    severities: Sequence[int] = (1, 2, 3, 4, 5),
    seed: int = 0,
) -> dict[str, LabeledImages]:
    """Makes corrupted copies of test images, of several kinds at several severities.

        report = synthaug.evaluate(arms, test={"clean": test, **corruptions(test)})
        report.mean("real", report.results)         # mean corruption accuracy

    No corruption may be part of the training, or its accuracy says nothing about others. Strengths
    are meant for images of about 32 pixels a side: the mildest changes little, the worst leaves
    most images recognizable to people.

    Args:
        test: Labeled images that name their classes; their pixels before transforms.
        kinds: Some of "noise", "blur", "contrast", "jpeg", "inpainting" and "snow".
        severities: From 1, the mildest, to 5.
        seed: Seed of noise, holes and snow; the same at all severities.

    Returns:
        "blur 1" and so on => the images in their order. All of them are held in memory.

    Raises:
        ValueError: For an unknown kind or severity, or one that is given twice.
    """
    check_some("kind", kinds=kinds)
    check_some("severity", severities=severities)
    check_distinct(kinds=kinds, severities=severities)
    check_whole(0, seed=seed)
    for kind in kinds:
        check_choice(CORRUPTIONS, kinds=kind)
    for severity in severities:
        check_choice(range(1, 6), severities=severity)
    source = ImageSource.open(test, "`test`")
    names = source.named_classes()
    made = {}
    for kind in kinds:
        for severity in severities:
            parts = [
                CORRUPTIONS[kind](pixels, severity, seed, block)
                for block, pixels in enumerate(source.blocks(_BLOCK))
            ]
            pixels = torch.cat(parts).round().clamp(0, 255).to(torch.uint8)
            name = f"{kind} {severity}"
            made[name] = LabeledImages(pixels, np.asarray(source.labels), names, name=name)
    return made
