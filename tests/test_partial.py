"""Comparing in part: a copy is found by what was left of it."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from synthaug import features
from synthaug._audit import matching, partial
from synthaug._audit.alignment import reduced, smoothed
from synthaug._audit.partial import cleaned, fit, glance, median
from synthaug._audit.rectangles import HALVES, MIDDLE, WHOLE


def scenes(n: int, c: int = 3, size: int = 32, seed: int = 0) -> Tensor:
    """Smooth scenes with some detail, float32 in [0, 1]."""
    coarse = torch.rand(n, c, 7, 7, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)


def covered(images: Tensor, top: float, bottom: float, left: float, right: float) -> Tensor:
    h, w = images.shape[-2:]
    changed = images.clone()
    place = slice(round(top * h), round(bottom * h)), slice(round(left * w), round(right * w))
    changed[..., place[0], place[1]] = 0.5
    return changed


CHANGES = {
    "as it is": lambda x: x,
    "a bar": lambda x: covered(x, 0, 0.25, 0, 1),
    "a square": lambda x: covered(x, 0.3, 0.7, 0.4, 0.8),
    "half of another": lambda x: torch.where(torch.arange(32) < 18, x, scenes(len(x), seed=9)),
    "other colors and a bar": lambda x: covered(x[:, [1, 2, 0]] * 0.8 + 0.1, 0.75, 1, 0, 1),
    "moved by half a pixel, and a bar": lambda x: covered((x + x.roll(1, -1)) / 2, 0, 0.2, 0, 1),
}


@pytest.mark.parametrize("compared", [glance, fit])
@pytest.mark.parametrize("change", CHANGES)
def test_a_copy_of_which_a_part_was_changed_is_closest_to_its_original(change, compared) -> None:
    originals = scenes(12)
    copies = CHANGES[change](originals)
    own = compared(copies, originals)
    others = torch.stack([compared(copies, originals.roll(i, 0)) for i in range(1, 6)])
    assert (own < 0.5 * others.amin(0)).all(), (own, others.amin(0))


def test_equal_images_have_distance_zero_and_images_of_one_color_resemble_nothing() -> None:
    images = scenes(3)
    torch.testing.assert_close(fit(images, images), torch.zeros(3), atol=2e-3, rtol=0)
    plain = torch.full_like(images, 0.3)
    torch.testing.assert_close(fit(plain, plain), torch.full((3,), 2**0.5))


@pytest.mark.parametrize(("c", "size"), [(1, 8), (3, 13), (1, 28), (3, 4)])
def test_images_of_any_size_are_compared_alike_whatever_they_are_compared_with(c, size) -> None:
    a, b = scenes(5, c, size), scenes(5, c, size, seed=1)
    for compared in (glance, fit):
        together = compared(a, b)
        assert torch.isfinite(together).all()
        alone = torch.cat([compared(a[i : i + 1], b[i : i + 1]) for i in range(5)])
        torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)


def test_single_pixels_that_were_changed_are_gone() -> None:
    images = (scenes(4) * 255).to(torch.uint8)
    salted = images.clone()
    salted[..., 3::6, 2::5] = 255
    salted[..., 5::7, 1::6] = 0
    a, b, other = cleaned(images), cleaned(salted), cleaned(images.roll(1, 0))
    assert (fit(b, a) < 0.3 * fit(b, other)).all()
    levels = images.float()
    assert median(levels)[0, 1, 5, 10] == levels[0, 1, 4:7, 9:12].median()


def test_the_middle_of_nine_whole_numbers_is_that_of_their_shares() -> None:
    images = (scenes(4) * 255).to(torch.uint8)
    assert torch.equal(cleaned(images), smoothed(median(reduced(images))))


def test_two_images_are_fitted_once_though_other_real_ones_are_asked_about(monkeypatch) -> None:
    """Training images and decoys together propose some of the pairs that training images did."""
    pairs: list[tuple[bytes, bytes]] = []

    def counted(queries: Tensor, references: Tensor) -> Tensor:
        both = zip(queries.numpy(), references.numpy(), strict=True)
        pairs.extend((query.tobytes(), reference.tobytes()) for query, reference in both)
        return glance(queries, references)

    monkeypatch.setattr(partial, "glance", counted)
    monkeypatch.setattr(partial, "fit", glance)
    monkeypatch.setattr(matching, "register", glance)
    images = (scenes(40, size=16) * 255).to(torch.uint8)
    searched = [
        matching.Matcher(some, [features.Pixel()], k=5) for some in (images[:20], images[20:30])
    ]
    searched[0].ask(searched[0].compare_pooled(searched[1], images[30:]))
    assert len(set(pairs)) == len(pairs) > 10


def test_parts_are_rectangles_of_any_image() -> None:
    pixels = torch.arange(2 * 3 * 5 * 7).remainder(251).to(torch.uint8).view(2, 3, 5, 7)
    left, right, upper, lower = (half.of(pixels) for half in HALVES)
    assert torch.equal(torch.cat([left, right], 3), pixels)
    assert torch.equal(torch.cat([upper, lower], 2), pixels)
    assert torch.equal(WHOLE.of(pixels), pixels)
    assert MIDDLE.of(pixels).shape == pixels.shape
    single = pixels[..., :1, :1]
    assert all(part.of(single).shape == single.shape for part in (*HALVES, MIDDLE))
