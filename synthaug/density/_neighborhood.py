"""How far the nearest real images are, and whether theirs are as far: AvgkNN and LOF.

Both come from one search: the mean distance to the k nearest real images, and the local outlier
factor of Breunig et al. 2000, "LOF: Identifying Density-Based Local Outliers".
"""

from functools import cached_property
from typing import NamedTuple, final

import numpy as np

from synthaug._neighbors import Index, checked_features, threads
from synthaug._support.arguments import check_between, check_whole
from synthaug._types import Doubles, Features, Integers

_LEAST = 1e-10
"""Added to distances that are divided by, as scikit-learn does: duplicates have none."""


class NeighborScores(NamedTuple):
    """One value per image; both are larger where real images are rare."""

    average_distance: Doubles
    """AvgkNN: mean Euclidean distance to the k nearest real images, float64 (n,)."""
    outlier_factor: Doubles
    """LOF: about 1 among real images, more where neighbors lie denser, float64 (n,). Minus
    `score_samples` of scikit-learn's `LocalOutlierFactor`."""


@final
class Neighborhood:
    """Real images in a feature space, to compare others with, or one another.

    The search is exact, over float32 features; distances are float64. Where several real images are
    equally distant, those with the lower row numbers count.

    Args:
        reference: Floating point (n, d), finite.
        k: Neighbors of an image, from 1 to n - 1; the paper has 5.

    Raises:
        ValueError: For another shape, or a value that is not finite, or `k` out of range.
    """

    def __init__(self, reference: Features, k: int = 5) -> None:
        reference = checked_features(reference, "reference")
        n = len(reference)
        check_whole(0, k=k)
        check_between(1, n - 1, f", one less than the {n} reference images", k=k)
        self.k = k
        self._reference = reference
        self._index = Index(reference)

    def scores(self, queries: Features | None = None) -> NeighborScores:
        """Both scores, from one search.

        Args:
            queries: Floating point (m, d), of other images. `None` scores the reference images,
                each against the others: an image is left out by its row number, so its duplicates
                count.
        """
        D, ids = self.nearest(queries)
        reference_density = self._reachability(*self._among_references)
        density = reference_density if queries is None else self._reachability(D, ids)
        return NeighborScores(D.mean(axis=1), reference_density[ids].mean(axis=1) / density)

    def nearest(self, queries: Features | None = None) -> tuple[Doubles, Integers]:
        """Distances to the k nearest reference images, ascending, and their row numbers, (n, k)."""
        if queries is None:
            return self._among_references
        queries = checked_features(queries, "queries")
        if queries.shape[1] != self._reference.shape[1]:
            raise ValueError(
                f"`queries` has {queries.shape[1]} features, and the reference images have "
                f"{self._reference.shape[1]}. Extract both with one extractor."
            )
        with threads():
            return self._index.search(queries, self.k)

    def _reachability(self, D: Doubles, ids: Integers) -> Doubles:
        """Local reachability density of images with neighbors `ids` at distances `D`, (n,)."""
        k_distance = self._among_references[0][:, -1]
        density: Doubles = 1 / (np.maximum(D, k_distance[ids]).mean(axis=1) + _LEAST)
        return density

    @cached_property
    def _among_references(self) -> tuple[Doubles, Integers]:
        """Distances and row numbers of the k nearest other reference images, (n, k) each."""
        with threads():
            D, ids = self._index.search(self._reference, self.k + 1)
        other = ids != np.arange(len(ids))[:, None]
        other[other.all(axis=1), -1] = False  # pushed off its own list by k + 1 duplicates
        return D[other].reshape(-1, self.k), ids[other].reshape(-1, self.k)


def average_knn_distance(
    reference: Features, queries: Features | None = None, *, k: int = 5
) -> Doubles:
    """AvgkNN of `queries`, or of the reference images among one another; see `Neighborhood`."""
    distances: Doubles = Neighborhood(reference, k).nearest(queries)[0].mean(axis=1)
    return distances


def local_outlier_factor(
    reference: Features, queries: Features | None = None, *, k: int = 5
) -> Doubles:
    """LOF of `queries`, or of the reference images among one another; see `Neighborhood`."""
    return Neighborhood(reference, k).scores(queries).outlier_factor
