"""Rules that say which synthetic images are kept: valid, useful, diverse, like the real ones.

Distances are Euclidean, between features, within classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol, final

import numpy as np

from synthaug._cache.serving import SyntheticImages
from synthaug._images.source import ImageSource
from synthaug._neighbors import search
from synthaug._support.arguments import check_choice, check_fraction, check_within
from synthaug._types import Doubles, Features, Flags, Indices, Labels
from synthaug.errors import DataError
from synthaug.evaluation import trained_classifier
from synthaug.features import Extractor, classifier, extract
from synthaug.selection._folds import Judges
from synthaug.selection._labels import parents_of


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Candidates:
    """The synthetic images to choose from, and what rules may ask about them; each is computed when
    it is asked for."""

    cache: SyntheticImages
    real: ImageSource
    rows: Indices
    """Rows of the cache that are done, int64 (n,); all that follows is about these."""
    labels: Labels
    """Their classes in the order of `real`, int64 (n,)."""
    judges: Judges
    extractor: Extractor | None

    @cached_property
    def probabilities(self) -> Features:
        """Class probabilities by classifiers that have not learned from a row's real image, float32
        (n, num_classes)."""
        parents = parents_of(self.cache, self.real)[self.rows]
        return self.judges.probabilities(self.real, self.cache.read(self.rows), parents)

    @property
    def agreement(self) -> Doubles:
        """Probability of each image's own label, float64 (n,)."""
        return self.probabilities[np.arange(len(self.rows)), self.labels].astype(np.float64)

    @cached_property
    def _features(self) -> tuple[Features, Features]:
        extractor, judges = self.extractor, self.judges
        if extractor is None:
            network = trained_classifier(
                self.real, config=judges.config, seed=judges.seed, progress=judges.progress
            )
            extractor = classifier(network, device=next(network.parameters()).device)
        return extract(extractor, self.cache.read(self.rows)), extract(
            extractor, self.real.pixels()
        )

    @property
    def features(self) -> Features:
        """Features of the synthetic images, float32 (n, d)."""
        return self._features[0]

    def real_features(self, label: int) -> Features:
        """Features of the real images of a class, float32 (m, d)."""
        return self._features[1][self.real.labels == label]

    def real_distances(self, label: int) -> Doubles:
        """Distance of every real image of a class to the nearest other one, float64 (m,); a
        DataError if there is only one."""
        own = self.real_features(label)
        if len(own) < 2:
            raise DataError(
                f"Class {self.real.named_classes()[label]!r} has {len(own)} real images, too few "
                "to say how far apart they are. Give at least 2, or leave the class out."
            )
        return search(own, own, 2)[0][:, 1]


class Rule(Protocol):
    """A rule that chooses among the images of one class."""

    def keep(self, candidates: Candidates, chosen: Indices, label: int, target: int) -> Flags:
        """Returns a mask of the images to keep, bool (m,).

        Args:
            candidates: All images.
            chosen: Rows of the class that earlier rules left, int64 (m,), ascending.
            label: The class.
            target: How many are wanted in the end; rules that only refuse leave it alone.
        """
        ...


@final
@dataclass(frozen=True, kw_only=True)
class Recognized:
    """Valid: classifiers that have not learned from an image's source take it for its class."""

    threshold: float | None = None
    """Least probability of the own label; `None` asks that it is the most probable one."""

    def __post_init__(self) -> None:
        check_within("(0, 1)", threshold=self.threshold)

    def keep(self, candidates: Candidates, chosen: Indices, label: int, target: int) -> Flags:
        """See `Rule`."""
        if self.threshold is not None:
            return candidates.agreement[chosen] >= self.threshold
        mask: Flags = candidates.probabilities[chosen].argmax(axis=1) == label
        return mask


@final
@dataclass(frozen=True, kw_only=True)
class Supported:
    """Valid: no farther from the real images of its class than these are from each other."""

    quantile: float = 0.99
    """Of the distances of real images to the nearest other one of their class."""

    def __post_init__(self) -> None:
        check_fraction(quantile=self.quantile)

    def keep(self, candidates: Candidates, chosen: Indices, label: int, target: int) -> Flags:
        """See `Rule`."""
        limit = np.quantile(candidates.real_distances(label), self.quantile)
        D, _ = search(candidates.real_features(label), candidates.features[chosen], 1)
        return D[:, 0] <= limit


@final
@dataclass(frozen=True, kw_only=True)
class Useful:
    """Useful: neither the easiest images of a class nor the hardest, by the loss of classifiers."""

    low: float = 0.2
    """Share of the easiest images that goes."""
    high: float = 0.9
    """Share below which images stay: of the images above, labels are wrong most often."""

    def __post_init__(self) -> None:
        check_fraction(low=self.low, high=self.high)
        if self.low >= self.high:
            raise ValueError(f"`low` is {self.low}, expected less than `high` {self.high}.")

    def keep(self, candidates: Candidates, chosen: Indices, label: int, target: int) -> Flags:
        """See `Rule`."""
        order = np.argsort(-candidates.agreement[chosen], kind="stable")
        ranks = np.empty(len(chosen))
        ranks[order] = (np.arange(len(chosen)) + 0.5) / len(chosen)
        return (ranks >= self.low) & (ranks <= self.high)


@final
@dataclass(frozen=True, kw_only=True)
class Distinct:
    """Diverse: of synthetic images that are nearly equal the first stays."""

    quantile: float = 0.01
    """Images are nearly equal if they are closer than this quantile of the distances of real images
    to the nearest other one of their class; those that are equal go always."""

    def __post_init__(self) -> None:
        check_fraction(quantile=self.quantile)

    def keep(self, candidates: Candidates, chosen: Indices, label: int, target: int) -> Flags:
        """See `Rule`."""
        limit = np.quantile(candidates.real_distances(label), self.quantile)
        own = candidates.features[chosen]
        D, ids = search(own, own, min(len(own), 32))
        near = (limit > D) | (D == 0)
        mask = np.ones(len(own), bool)
        for i in range(len(own)):
            before = ids[i][near[i] & (ids[i] < i)]
            mask[i] = not mask[before].any()
        return mask


@final
@dataclass(frozen=True, kw_only=True)
class Covering:
    """Diverse: as many images as are wanted, which together cover all of a class."""

    method: Literal["k-center", "facility-location"] = "k-center"
    """"k-center" takes the image that is farthest from all taken before, again and again, outliers
    among the first; "facility-location" the one that brings all images nearest to a taken one."""

    def __post_init__(self) -> None:
        check_choice(("k-center", "facility-location"), method=self.method)

    def keep(self, candidates: Candidates, chosen: Indices, label: int, target: int) -> Flags:
        """See `Rule`."""
        x = candidates.features[chosen].astype(np.float64)
        if len(x) <= target:
            return np.ones(len(x), bool)
        if self.method == "k-center":
            return _k_center(x, target)
        return _facility_location(x, target)


@final
@dataclass(frozen=True, kw_only=True)
class LikeReal:
    """Chooses as many images as are wanted, whose distribution is nearest to that of the real ones
    of their
    class: greedy maximum mean discrepancy (kernel herding) with a Gaussian kernel."""

    def keep(self, candidates: Candidates, chosen: Indices, label: int, target: int) -> Flags:
        """See `Rule`."""
        x = candidates.features[chosen].astype(np.float64)
        if len(x) <= target:
            return np.ones(len(x), bool)
        y = candidates.real_features(label).astype(np.float64)
        squared = _squared_distances(x, y)
        width = max(float(np.median(squared)), 1e-12)
        wanted = np.exp(-squared / width).mean(1)
        taken, total = np.zeros(len(x), bool), np.zeros(len(x))
        for count in range(target):
            score = np.where(taken, -np.inf, wanted - total / (count + 1))
            best = int(score.argmax())
            taken[best] = True
            total += np.exp(-_squared_distances(x, x[best : best + 1])[:, 0] / width)
        return taken


def _squared_distances(x: Doubles, y: Doubles) -> Doubles:
    products: Doubles = np.square(x).sum(1)[:, None] + np.square(y).sum(1) - 2 * x @ y.T
    return products.clip(min=0)


def _k_center(x: Doubles, target: int) -> Flags:
    taken = np.zeros(len(x), bool)
    best = int(np.square(x - x.mean(0)).sum(1).argmin())  # the first is the one in the middle
    D = np.full(len(x), np.inf)
    for _ in range(target):
        taken[best] = True
        D = np.minimum(D, np.square(x - x[best]).sum(1))
        best = int(np.where(taken, -1.0, D).argmax())
    return taken


def _facility_location(x: Doubles, target: int) -> Flags:
    D = np.sqrt(_squared_distances(x, x))
    taken, nearest = np.zeros(len(x), bool), np.full(len(x), D.max())
    for _ in range(target):
        gain = np.maximum(nearest[:, None] - D, 0).sum(0)
        best = int(np.where(taken, -1.0, gain).argmax())
        taken[best] = True
        nearest = np.minimum(nearest, D[:, best])
    return taken


RULES: dict[str, Callable[[], Rule]] = {
    "label": Recognized,
    "support": Supported,
    "useful": Useful,
    "distinct": Distinct,
    "k-center": Covering,
    "facility-location": lambda: Covering(method="facility-location"),
    "mmd": LikeReal,
}
"""Rules by name, with their defaults."""
JUDGING = (Recognized, Useful)
"""Rules that ask classifiers which have not learned from an image's source."""
