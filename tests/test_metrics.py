"""Fréchet and kernel distances, inception score, precision, recall, density and coverage."""

import sys
from typing import Any

import numpy as np
import pytest
import torch

from synthaug.metrics import (
    ManifoldScores,
    frechet_distance,
    inception_score,
    kernel_distance,
    manifold_scores,
)


def normal(n: int, d: int, seed: int) -> Any:
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def whitened(n: int, d: int) -> Any:
    """A set whose mean is 0 and whose covariance is the identity, up to float32."""
    x = np.random.default_rng(0).standard_normal((n, d))
    x -= x.mean(0)
    return x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T


def test_the_frechet_distance_of_gaussians_is_the_closed_form():
    x, stds, shift = whitened(50, 3), np.array([0.5, 1.0, 3.0]), np.array([1.0, 0.0, 2.0])
    expected = (shift**2).sum() + ((stds - 1) ** 2).sum()
    for offset in (0, 1000):  # as large as float32 keeps five digits of the rest
        y = (x * stds + shift + offset).astype(np.float32)
        found = frechet_distance((x + offset).astype(np.float32), y)
        assert found == pytest.approx(expected, rel=1e-3 if offset else 1e-5)
        assert frechet_distance(y, (x + offset).astype(np.float32)) == pytest.approx(found)


def test_identical_sets_are_at_no_distance():
    x = normal(64, 16, 0) * 10.0 ** np.arange(-8, 8)
    x = x.astype(np.float32)
    assert frechet_distance(x, x) < 1e-6 * (x.astype(float) ** 2).sum(1).mean()
    assert frechet_distance(x[:20], x[:20], force=True) < 1e-6 * (x.astype(float) ** 2).sum()
    x = normal(1000, 4, 1)
    assert abs(kernel_distance(x, x)[0]) < 0.05
    precision, recall, density, coverage = manifold_scores(x, x, k=5)
    assert (precision, recall, coverage) == (1, 1, 1)
    assert density == pytest.approx(6 / 5)  # every ball holds its own image and k others


def test_a_frechet_distance_of_fewer_images_than_twice_the_features_is_refused():
    with pytest.raises(ValueError, match="`real` has 15 images for 8 features"):
        frechet_distance(normal(16, 8, 0), normal(15, 8, 1))
    assert frechet_distance(normal(16, 8, 0), normal(16, 8, 1)) > 0
    assert frechet_distance(normal(5, 8, 0), normal(15, 8, 1), force=True) > 0


def test_the_kernel_distance_of_whole_sets_is_the_unbiased_estimate():
    x, y = normal(12, 3, 0).astype(float), normal(12, 3, 1).astype(float) + 0.5

    def kernel(a, b):
        return (a @ b.T / 3 + 1) ** 3

    off = ~np.eye(12, dtype=bool)
    expected = kernel(x, x)[off].mean() + kernel(y, y)[off].mean() - 2 * kernel(x, y).mean()
    mean, std = kernel_distance(
        x.astype(np.float32), y.astype(np.float32), subset_size=12, subsets=2
    )
    assert mean == pytest.approx(expected, rel=1e-5)
    assert std == pytest.approx(0, abs=1e-9)


def test_the_inception_score_counts_the_classes_that_are_told_apart():
    sure = np.eye(4, dtype=np.float32)[np.arange(400) % 4] * 100
    assert inception_score(sure, splits=2)[0] == pytest.approx(4, rel=0.02)
    assert inception_score(np.zeros((40, 4), np.float32))[0] == pytest.approx(1)
    assert inception_score(sure[:1].repeat(40, 0))[0] == pytest.approx(1)


def test_the_inception_score_of_an_absent_class_and_sure_logits_is_that_of_the_formula():
    logits = np.zeros((600, 4))
    logits[np.arange(600), np.arange(600) % 3] = 2000.0  # nobody shows class 3, whose p underflows
    assert inception_score(logits, splits=2)[0] == pytest.approx(3, rel=0.02)
    some = normal(60, 5, 0).astype(float)
    p = np.exp(some) / np.exp(some).sum(1, keepdims=True)
    halves = [p, p]  # the same images in both parts, whatever the order of the images
    expected = [np.exp((q * np.log(q / q.mean(0))).sum(1).mean()) for q in halves]
    found = np.mean([inception_score(np.tile(some, (50, 1)), splits=2, seed=s)[0] for s in (0, 1)])
    assert found == pytest.approx(np.mean(expected), rel=5e-3)


def test_logits_are_taken_in_float64_and_are_named():
    some = normal(40, 3, 0).astype(float)
    apart = inception_score(some + 1e9)[0]  # in float32 these are all alike
    assert apart == pytest.approx(inception_score(some)[0], rel=1e-5)
    with pytest.raises(ValueError, match="logits"):
        inception_score(np.zeros(3))


@pytest.mark.parametrize("n", [10, 11, 91, 100])
def test_the_inception_score_has_as_many_parts_as_it_is_asked_for(n, monkeypatch):
    sizes: list[list[int]] = []
    split = np.array_split

    def watched(array: Any, parts: int) -> Any:
        sizes.append([len(part) for part in split(array, parts)])
        return split(array, parts)

    monkeypatch.setattr(np, "array_split", watched)
    score, std = inception_score(normal(n, 3, 0))
    assert np.isfinite([score, std]).all()
    (found,) = sizes
    assert len(found) == 10
    assert max(found) - min(found) <= 1


def test_distances_are_taken_in_the_precision_of_the_features():
    far = normal(200, 2, 0).astype(float) + 1e6  # whose differences float32 rounds to sixteenths
    near = normal(200, 2, 1).astype(float) + 1e6
    expected = frechet_distance(far - 1e6, near - 1e6)
    assert frechet_distance(far, near) == pytest.approx(expected, rel=2e-2)


def test_the_bias_of_the_frechet_distance_is_the_documented_one():
    d, n = 16, 1000
    found = np.mean([frechet_distance(normal(n, d, i), normal(n, d, 99 - i)) for i in range(3)])
    assert found == pytest.approx((d**2 + 5 * d) / (2 * n), rel=0.15)


def test_scores_leave_the_global_stream_of_random_numbers_alone():
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    kernel_distance(normal(20, 2, 0), normal(20, 2, 1))
    found = inception_score(normal(20, 2, 0), splits=2)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert inception_score(normal(20, 2, 0), splits=2) == found


def brute_force(synthetic: Any, real: Any, k: int) -> ManifoldScores:
    """The definitions, pair by pair."""

    def distance(a, b):
        difference = a[:, None].astype(float) - b[None].astype(float)
        return np.sqrt((difference**2).sum(-1))

    def radii(x):
        return np.sort(distance(x, x), axis=1)[:, k]  # the first is the image itself

    to_real = distance(synthetic, real)
    in_real, in_synthetic = to_real <= radii(real), to_real <= radii(synthetic)[:, None]
    return ManifoldScores(
        precision=in_real.any(1).mean(),
        recall=in_synthetic.any(0).mean(),
        density=in_real.sum() / (k * len(synthetic)),
        coverage=in_real.any(0).mean(),
    )


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("kind", ["continuous", "far from 0", "ties and duplicates"])
def test_manifold_scores_equal_the_definitions_pair_by_pair(kind, k, monkeypatch):
    monkeypatch.setattr("synthaug.metrics._PAIRS", 100)  # several chunks
    synthetic, real = normal(40, 3, 0) * 0.8 + 0.5, normal(30, 3, 1)
    if kind == "far from 0":
        synthetic, real = synthetic + 3000, real + 3000
    if kind == "ties and duplicates":
        synthetic, real = np.round(synthetic), np.round(real)
        real[20:] = real[0]
    found = manifold_scores(synthetic, real, k=k)
    assert found == pytest.approx(brute_force(synthetic, real, k), abs=1e-12)
    assert 0 < found.precision < 1 or kind == "ties and duplicates"


def test_missing_modes_lower_recall_and_coverage_and_strange_images_precision_and_density():
    real = np.concatenate([normal(50, 2, 0), normal(50, 2, 1) + 20])
    half, stray = normal(100, 2, 2), np.concatenate([normal(50, 2, 3), normal(50, 2, 4) - 20])
    assert manifold_scores(half, real).precision > 0.9
    assert manifold_scores(half, real).recall < 0.6
    assert manifold_scores(half, real).coverage < 0.6
    assert manifold_scores(stray, real).precision < 0.6
    assert manifold_scores(stray, real).density < 0.7


def test_logits_that_are_not_finite_are_no_fault_of_an_extractor():
    with pytest.raises(ValueError, match="Look at the classifier"):
        inception_score(normal(20, 3, 0) * np.nan)


@pytest.mark.parametrize(
    ("synthetic", "real", "message"),
    [
        (normal(9, 2, 0), normal(9, 3, 0), "`synthetic` has 2 features, `real` has 3"),
        (normal(9, 2, 0) * np.nan, normal(9, 2, 0), "`synthetic` is not finite in row 0"),
        (normal(9, 2, 0), np.zeros((9, 2), int), "`real` must be floating point"),
    ],
)
def test_features_that_make_no_sense_are_refused(synthetic, real, message):
    for metric in (frechet_distance, kernel_distance, manifold_scores):
        with pytest.raises(ValueError, match=message):
            metric(synthetic, real)


def test_without_torchmetrics_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics.image", None)
    with pytest.raises(ImportError, match=r"pip install 'synthaug\[metrics\]'"):
        frechet_distance(normal(9, 2, 0), normal(9, 2, 1))
    assert manifold_scores(normal(9, 2, 0), normal(9, 2, 1)).precision >= 0
