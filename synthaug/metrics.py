"""How alike two sets of images are, in the features of an extractor.

Heusel et al. 2017 (Fréchet distance), Binkowski et al. 2018 (kernel distance), Salimans et al. 2016
(inception score), Kynkäänniemi et al. 2019 (precision, recall), Naeem et al. 2020 (density,
coverage). The first two are computed by torchmetrics (extra `metrics`).

Each of them is a property of the features as much as of the images, and of the number of images:
name both beside a number, and compare it with what another set of real images gets.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.special import log_softmax, logsumexp
from torch import Tensor, nn

from synthaug._images.edges import edge_agreement
from synthaug._neighbors import checked_features, distances
from synthaug._support.arguments import check_between, check_whole
from synthaug._support.extras import from_extra
from synthaug._support.torch_state import torch_defaults
from synthaug._types import Doubles, Features, Integers
from synthaug.density import Neighborhood

_PAIRS = 2**22
"""Pairs of images that are compared at a time: 32 MB in float64."""

_ROUNDING = 1e-11
"""Bound for the relative error of |a - b|^2 as |a|^2 + |b|^2 - 2 a.b in float64."""


@torch_defaults()
def frechet_distance(synthetic: Features, real: Features, *, force: bool = False) -> float:
    """Fréchet distance of two Gaussians with the means and covariances of the sets, at least 0.

    |mu - mu'|^2 + tr(C + C' - 2 (C C')^(1/2)), in float64. It is biased: two sets of n images of
    one distribution get about (d^2 + 5 d) / (2 n) times the variance of a feature, if the d
    features vary alike and independently. So compare only sets of equal size.

    Args:
        synthetic: Floating point (n, d).
        real: Floating point (m, d).
        force: Go on with fewer images than 2 d.

    Raises:
        ValueError: With fewer than 2 d images in a set, whose covariance has next to no rank.
        ImportError: Without torchmetrics.
    """
    synthetic, real = _pair(synthetic, real)
    for name, features in {"synthetic": synthetic, "real": real}.items():
        check_rank(*features.shape, name=f"`{name}`", force=force)
    metric = _torchmetrics("fid").FrechetInceptionDistance(_AsGiven(real.shape[1]))
    _update(metric, synthetic, real)
    return max(0.0, float(metric.compute()))


def check_rank(n: int, d: int, *, name: str, force: bool = False) -> None:
    """Refuses n images for a Fréchet distance in d dimensions with a ValueError if there are fewer
    than 2 d, unless `force`."""
    if n < 2 * d and not force:
        raise ValueError(
            f"{name} has {n} images for {d} features; a Fréchet distance needs at least "
            f"{2 * d}, twice the features. Give more images, take features of fewer dimensions, or "
            "go on with `force=True`."
        )
    if n < 2:
        raise ValueError(f"{name} has {n} images; a Fréchet distance needs at least 2.")


def kernel_distance(
    synthetic: Features,
    real: Features,
    *,
    subsets: int = 100,
    subset_size: int | None = None,
    seed: int = 0,
) -> tuple[float, float]:
    """Kernel distance (KID): unbiased squared maximum mean discrepancy, averaged over subsets.

    The kernel is (a.b / d + 1)^3, so it depends on the scale of the features too. About 0 for sets
    of one distribution, and below it by chance.

    Args:
        synthetic: Floating point (n, d).
        real: Floating point (m, d).
        subsets: How many.
        subset_size: Images in each; by default 1,000, or half the smaller set if that is less.
        seed: Seed of the subsets.

    Returns:
        Mean and standard deviation over the subsets.

    Raises:
        ValueError: For a subset larger than a set, or of fewer than 2 images.
        ImportError: Without torchmetrics.
    """
    synthetic, real = _pair(synthetic, real)
    fewest = min(len(synthetic), len(real))
    size = min(1000, fewest // 2) if subset_size is None else subset_size
    check_whole(1, subsets=subsets)
    check_whole(0, seed=seed)
    check_whole(0, subset_size=size)
    check_between(2, fewest, ", the size of the smaller set", subset_size=size)
    with _quiet(seed):
        metric = _torchmetrics("kid").KernelInceptionDistance(
            _AsGiven(real.shape[1]), subsets=subsets, subset_size=size
        )
        _update(metric, synthetic, real)
        mean, std = metric.compute()
    return float(mean), float(std)


def inception_score(logits: Features, *, splits: int = 10, seed: int = 0) -> tuple[float, float]:
    """exp E KL(p(y | x) || p(y)), from the logits of any classifier: 1 to the number of classes.

    Large where the classifier is sure of each image and unsure of all together. Another classifier
    than Inception gives another score: compare only scores of one.

    Args:
        logits: Floating point (n, classes).
        splits: Parts, each with a score of its own, at least 2; their sizes differ by 1 at most.
        seed: Seed of the parts.

    Returns:
        Mean and standard deviation over the parts.

    Raises:
        ValueError: For fewer images than parts.
    """
    logits = checked_features(logits, "logits", np.float64, "classifier")
    check_whole(0, splits=splits, seed=seed)
    check_between(2, len(logits), " images", splits=splits)
    with _quiet(seed):
        order = torch.randperm(len(logits), dtype=torch.int64, device="cpu").numpy()
    log_p = log_softmax(logits[order], axis=1)
    scores = []
    for part in np.array_split(log_p, splits):
        log_marginal = logsumexp(part, axis=0) - np.log(len(part))  # finite where p(y | x) is 0
        scores.append(np.exp((np.exp(part) * (part - log_marginal)).sum(1).mean()))
    return float(np.mean(scores)), float(np.std(scores, ddof=1))


class ManifoldScores(NamedTuple):
    """Where two sets lie among one another, each a share but the density."""

    precision: float
    """Synthetic images that lie in the ball of at least one real image."""
    recall: float
    """Real images that lie in the ball of at least one synthetic image."""
    density: float
    """Balls of real images that a synthetic image lies in, over k: about 1 for real images."""
    coverage: float
    """Real images whose ball holds at least one synthetic image."""


def manifold_scores(synthetic: Features, real: Features, *, k: int = 5) -> ManifoldScores:
    """Precision, recall, density and coverage.

    The ball of an image reaches, border included, to its k-th nearest neighbor in its own set. A
    single outlier among the real images has a large ball that many synthetic ones lie in: density
    and coverage are less moved by it than precision and recall.

    Args:
        synthetic: Floating point (n, d), more than k.
        real: Floating point (m, d), more than k.
        k: Neighbors.

    Raises:
        ValueError: If a set has too few images.
    """
    synthetic, real = _pair(synthetic, real)
    real_radii, synthetic_radii = (
        Neighborhood(features, k).nearest()[0][:, -1] for features in (real, synthetic)
    )
    balls, held = _inside(synthetic, real, real_radii)
    reached, _ = _inside(real, synthetic, synthetic_radii)
    return ManifoldScores(
        precision=float((balls > 0).mean()),
        recall=float((reached > 0).mean()),
        density=float(balls.mean() / k),
        coverage=float((held > 0).mean()),
    )


def _inside(points: Features, centers: Features, radii: Doubles) -> tuple[Integers, Integers]:
    """How many balls each point lies in, and how many points each ball holds.

    Distances are expanded for speed; where that cannot tell which side of the border a point lies
    on, they are taken by subtraction, just as the radii were.
    """
    middle = centers.mean(0, dtype=np.float64)
    a, b = points - middle, centers - middle
    aa, bb = (np.einsum("nd,nd->n", x, x) for x in (a, b))
    balls, held = np.zeros(len(a), np.int64), np.zeros(len(b), np.int64)
    rows = max(1, _PAIRS // len(b))
    for start in range(0, len(a), rows):
        part = slice(start, start + rows)
        scale = aa[part, None] + bb
        beyond = scale - 2 * a[part] @ b.T - radii**2  # |a - b|^2 - r^2
        inside = beyond <= 0
        i, j = np.nonzero(np.abs(beyond) <= _ROUNDING * scale)
        if len(i):
            exact = distances(centers, points[part][i], j[:, None].astype(np.int64))[:, 0]
            inside[i, j] = exact <= radii[j]
        balls[part] = inside.sum(1)
        held += inside.sum(0)
    return balls, held


class _AsGiven(nn.Module):
    """In the place of torchmetrics' network: what it is given are features already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def _torchmetrics(module: str) -> Any:
    needs = "Fréchet distance and kernel distance need torchmetrics"
    with from_extra("torchmetrics", needs, "metrics"):
        from torchmetrics.image import fid, kid
    return {"fid": fid, "kid": kid}[module]


def _update(metric: Any, synthetic: Features, real: Features) -> None:
    for features, is_real in ((synthetic, False), (real, True)):
        # Doubles: torchmetrics subtracts the square of the mean from the mean of the squares.
        metric.update(torch.from_numpy(features), real=is_real)


@contextmanager
def _quiet(seed: int) -> Iterator[None]:
    """Draws from a stream of its own, and without torchmetrics' word on memory."""
    with torch_defaults(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.default_generator.manual_seed(seed)
        yield


def _pair(synthetic: Features, real: Features) -> tuple[Features, Features]:
    synthetic = checked_features(synthetic, "synthetic", np.float64)
    real = checked_features(real, "real", np.float64)
    if synthetic.shape[1] != real.shape[1]:
        raise ValueError(
            f"`synthetic` has {synthetic.shape[1]} features, `real` has {real.shape[1]}. Extract "
            "both with one extractor."
        )
    return synthetic, real


__all__ = [
    "ManifoldScores",
    "check_rank",
    "edge_agreement",
    "frechet_distance",
    "inception_score",
    "kernel_distance",
    "manifold_scores",
]
