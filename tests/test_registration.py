"""Registration: a copy that was turned, stretched or recolored comes to lie on its original."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from synthaug._audit.registration import register


def scenes(n: int, c: int = 3, size: int = 32, seed: int = 0) -> Tensor:
    """Smooth scenes with some detail, float32 in [0, 1]."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.uniform(0, 1, (n, c, 7, 7)).astype(np.float32))
    return F.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)


def mapped(images: Tensor, linear: list[list[float]], shift: tuple[float, float]) -> Tensor:
    maps = torch.tensor([[[*row, move] for row, move in zip(linear, shift, strict=True)]])
    grid = F.affine_grid(maps.expand(len(images), 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def turned(images: Tensor, degrees: float) -> Tensor:
    x, y = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return mapped(images, [[x, -y], [y, x]], (0, 0))


RAMP = torch.linspace(0.7, 1.3, 32)

CHANGES = {
    "as it is": lambda x: x,
    "turned by 4 degrees": lambda x: turned(x, 4),
    "turned by -12 degrees": lambda x: turned(x, -12),
    "stretched": lambda x: mapped(x, [[0.85, 0], [0, 1]], (0, 0)),
    "enlarged": lambda x: mapped(x, [[0.8, 0], [0, 0.8]], (0.1, -0.1)),
    "moved": lambda x: mapped(x, [[1, 0], [0, 1]], (0.2, -0.15)),
    "gray": lambda x: x.mean(1, keepdim=True).expand_as(x),
    "other colors": lambda x: x[:, [1, 2, 0]] * 0.8 + 0.1,
    "lit from one side": lambda x: x * 0.7 * RAMP,
    "partly covered": lambda x: torch.where(
        (torch.arange(32) < 9)[:, None] & (torch.arange(32) > 20), 0.5, x
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_closer_to_its_original_than_to_any_other(change: str) -> None:
    originals = scenes(12)
    copies = CHANGES[change](originals)
    own = register(copies, originals)
    others = torch.stack([register(copies, originals.roll(i, 0)) for i in range(1, 6)])
    assert (own < 0.25 * others.amin(0)).all(), (own, others.amin(0))


def test_equal_images_have_distance_zero_and_others_do_not() -> None:
    a, b = scenes(4), scenes(4, seed=1)
    assert (register(a, a) < 0.02).all()
    distance = register(a, b)
    assert (distance > 0.3).all()
    assert (distance <= math.sqrt(2)).all()


def test_images_of_one_color_resemble_nothing() -> None:
    flat = torch.full((2, 3, 32, 32), 0.4)
    assert (register(flat, scenes(2)) > 1.4).all()
    assert (register(flat, flat) > 1.4).all()
    # Light from one side may explain a little of any scene.
    assert (register(scenes(2), flat) > 1).all()


@pytest.mark.parametrize(("c", "size"), [(1, 8), (3, 16), (1, 28)])
def test_small_and_gray_images_are_registered_too(c: int, size: int) -> None:
    originals = scenes(6, c=c, size=size)
    own = register(turned(originals, 5), originals)
    other = register(turned(originals, 5), originals.roll(1, 0))
    assert (own < 0.5 * other).all()


def test_a_pair_is_registered_alike_whatever_it_is_registered_with() -> None:
    a, b = turned(scenes(40), 7), scenes(40)
    together = register(a, b)
    alone = torch.cat([register(a[i : i + 1], b[i : i + 1]) for i in range(40)])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-3)
    assert torch.equal(register(a, b), together)
