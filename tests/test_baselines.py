"""Images that cost no generator: Gaussians, noisy copies, copies, images of a pool."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.covariance import OAS

from synthaug import features
from synthaug.errors import DataError, MismatchError
from synthaug.evaluation import class_gaussians, noisy_copies, rare_copies, retrieved
from synthaug.images import LabeledImages
from tests.mixtures import CLASSES


def few_images(counts: tuple[int, ...], seed: int = 0) -> LabeledImages:
    """Images of mid levels, with structure: neighbors resemble each other."""
    labels = np.repeat(np.arange(len(counts)), counts)
    noise = torch.randn(len(labels), 1, 3, 4, generator=torch.Generator().manual_seed(seed))
    smooth = (
        120
        + 20 * torch.cumsum(noise, dim=3) / 2
        + 10 * torch.from_numpy(labels)[:, None, None, None]
    )
    return LabeledImages(smooth.round().to(torch.uint8), labels, CLASSES)


def rows(images: LabeledImages, c: int) -> np.ndarray:
    of_class = images.read(np.flatnonzero(images.labels == c))
    return of_class.flatten(1).double().numpy()


@pytest.mark.parametrize("n", [5, 40])  # fewer and more images than pixels
def test_gaussians_have_the_mean_and_the_shrunk_covariance_of_their_class(n: int) -> None:
    real = few_images((n, n, 3))
    drawn = class_gaussians(real, per_class=20_000, seed=1)
    assert drawn.labels.tolist() == sorted([0, 1, 2] * 20_000)
    assert drawn.image_shape == (1, 3, 4)
    for c in (0, 1):
        fitted = OAS().fit(rows(real, c))
        found = rows(drawn, c)
        assert np.abs(found.mean(0) - fitted.location_).max() < 1
        scale = fitted.covariance_.max()
        error = np.cov(found.T) - fitted.covariance_
        assert np.abs(error).max() < 0.05 * scale


def test_gaussians_are_functions_of_the_seed_and_a_class_that_does_not_vary_stays() -> None:
    real = few_images((4, 4, 4))
    one, same, other = (class_gaussians(real, per_class=3, seed=s) for s in (0, 0, 1))
    assert one.fingerprint == same.fingerprint != other.fingerprint
    constant = LabeledImages(torch.full((4, 1, 2, 2), 7, dtype=torch.uint8), [0, 0, 2, 2], CLASSES)
    drawn = class_gaussians(constant, per_class=2)
    assert drawn.labels.tolist() == [0, 0, 2, 2]  # classes without images stay without
    assert (drawn.read(range(4)) == 7).all()
    with pytest.raises(DataError, match="Class 'cow' of `real` has a single image"):
        class_gaussians(few_images((3, 3, 1)), per_class=2)
    with pytest.raises(ValueError, match="`per_class` must be at least 1"):
        class_gaussians(real, per_class=0)


def test_noise_has_the_deviation_that_was_asked_for() -> None:
    real = few_images((30, 30, 30))
    copies = noisy_copies(real, sigma=0.05, copies=2, seed=3)
    assert copies.labels.tolist() == real.labels.tolist() * 2
    noise = copies.read(range(180)).double() - real.read(range(90)).double().repeat(2, 1, 1, 1)
    assert noise.std().item() == pytest.approx(0.05 * 255, rel=0.1)
    assert not torch.equal(noise[:90], noise[90:])
    with pytest.raises(ValueError, match="`sigma` must be positive"):
        noisy_copies(real, sigma=0.0)


def test_copies_fill_rare_classes_with_their_images_in_turn() -> None:
    real = few_images((9, 2, 4))
    copies = rare_copies(real)
    assert Counter(copies.labels.tolist()) == {1: 7, 2: 5}
    shown = [image.tobytes() for image in rows(copies, 1)]
    assert sorted(Counter(shown).values()) == [3, 4]
    assert set(shown) == {image.tobytes() for image in rows(real, 1)}
    assert Counter(rare_copies(real, fill_to=4).labels.tolist()) == {1: 2}
    with pytest.raises(DataError, match="Every class of `real` has 2 images or more already"):
        rare_copies(real, fill_to=2)


def test_a_pool_gives_its_nearest_images_with_the_labels_of_the_real_ones() -> None:
    def plain(levels: list[int], labels: list[int], size: int = 4) -> LabeledImages:
        pixels = torch.tensor(levels, dtype=torch.uint8)[:, None, None, None]
        return LabeledImages(pixels.expand(-1, 1, size, size), labels, CLASSES)

    real = plain([10, 100, 200], [0, 1, 2])
    pool = plain([12, 200, 90, 103, 11, 130], [2, 0, 2, 0, 1, 0])
    options: dict[str, Any] = {"features": features.named("pixels:2"), "progress": False}
    found = retrieved(pool, real, per_class=2, **options)
    assert found.labels.tolist() == [0, 0, 1, 1]  # the image equal to a real one is left out
    assert found.read(range(4))[:, 0, 0, 0].tolist() == [11, 12, 103, 90]
    with pytest.raises(MismatchError, match=r"`pool` has images of shape \(1, 8, 8\), `real` has"):
        retrieved(plain([1], [0], 8), real, per_class=1, **options)
    with pytest.raises(DataError, match="All images of `pool` are also in `real`"):
        retrieved(real, real, per_class=1, **options)
