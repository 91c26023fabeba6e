"""Target-decoy competition: finds copies without assuming that synthetic images look real.

The p-values of the hold-out compare synthetic images with real ones, so they suffer when a
generator makes images that are closer to *everything*. Here every synthetic image is compared with
training and hold-out images together, and what counts is in which of the two its closest match
lies. A generator that copies nothing has no reason to prefer either, however its images look: a
match is a training image ("target") or a held-out one ("decoy") in proportion to their numbers. So
the decoys among the closest matches tell how many of the targets are there by chance (Elias and
Gygi 2007; Emery et al. 2020 for unequal numbers).

Synthetic images that match the same real image, or resemble each other more than anything real,
are one piece of evidence and not many: only the closest of each such cluster competes. Otherwise a
generator with collapsed modes raises false alarms.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from synthaug._audit.precedence import Excess, excess
from synthaug._noise import counter_rng

Flags = NDArray[np.bool_]

TOLERATED_RATE = 0.02
"""Copies among this share of the clusters need not show in the share of targets."""


@dataclass(frozen=True, kw_only=True)
class Competition:
    """Outcome for n synthetic images."""

    q_values: NDArray[np.float64]
    """Smallest false discovery rate at which the image's cluster counts as copied, (n,); 1 where
    the match is a decoy, and for images that do not represent their cluster."""
    is_target: Flags
    """Whether the closest match is a training image, (n,)."""
    clusters: NDArray[np.int64]
    """Number of each image's cluster, (n,)."""
    targets: int
    """Clusters whose representative matches a training image."""
    expected_share: float
    """Share of clusters that would do so by chance."""
    share_p_value: float
    """Chance that as many do so by chance (one-sided binomial test)."""
    leaning: bool
    """Whether more do so than chance and copies among 2 % of the clusters explain: then there is
    copying, though perhaps no single image stands out."""
    resolution: int
    """Fewest clusters that can be found: so many targets, and no decoy."""
    excess: Excess
    """Whether training images are the match of the closest clusters more often than chance has it,
    whatever made the synthetic images."""
    closest: NDArray[np.int64]
    """The images that represent those clusters, closest first."""

    @property
    def num_clusters(self) -> int:
        """Number of clusters."""
        return int(self.clusters.max()) + 1

    @property
    def detectable_share(self) -> float:
        """Share of copies that a test of the share at 0.05 would notice with a chance of 0.8.

        A share r of copies adds r (1 - s) to the share s expected by chance, whose standard error
        is sqrt(s (1 - s) / n).
        """
        s = self.expected_share
        return float(min(1.0, (1.645 + 0.842) * (s / (1 - s) / self.num_clusters) ** 0.5))

    @property
    def share(self) -> float:
        """Share of clusters whose representative matches a training image."""
        return self.targets / self.num_clusters


@dataclass(frozen=True, kw_only=True)
class Entrants:
    """The n synthetic images that compete."""

    ranks: NDArray[np.float64]
    """How close each comes to its match, (n,), small is close. Must not depend on whether the match
    is a target."""
    matches: NDArray[np.int64]
    """The real image that each matches, (n,)."""
    is_target: Flags
    """Whether that is a training image, (n,)."""
    links: NDArray[np.int64]
    """Pairs of them that belong together, (l, 2)."""


def compete(
    entrants: Entrants, *, num_targets: int, num_decoys: int, fdr: float, level: float, seed: int
) -> Competition:
    """Lets targets and decoys compete.

    Args:
        entrants: The synthetic images and their matches.
        num_targets: Training images.
        num_decoys: Hold-out images.
        fdr: False discovery rate, for the resolution.
        level: Chance at which an excess, or a leaning, counts as one.
        seed: For the random assignments.
    """
    from scipy.stats import binomtest

    ranks, is_target = entrants.ranks, entrants.is_target
    clusters = _clusters(entrants.matches, entrants.links)
    order = np.lexsort((np.arange(len(ranks)), ranks))
    # The first image of each cluster, in order of closeness, represents it.
    _, first = np.unique(clusters[order], return_index=True)
    chosen = order[np.sort(first)]
    target = is_target[chosen]
    ratio = num_targets / num_decoys
    estimate = (1 + np.cumsum(~target)) * ratio / np.maximum(np.cumsum(target), 1)
    q = np.minimum.accumulate(estimate[::-1])[::-1]
    q_values = np.ones(len(ranks))
    q_values[chosen[target]] = np.minimum(q[target], 1)
    share = num_targets / (num_targets + num_decoys)
    targets = int(target.sum())
    test = binomtest(targets, len(chosen), share, alternative="greater")
    tolerated = share + (1 - share) * TOLERATED_RATE
    beyond = binomtest(targets, len(chosen), tolerated, alternative="greater")
    population = num_targets + num_decoys, num_targets
    found = excess(target, population=population, level=level, rng=counter_rng(seed, 4))
    return Competition(
        q_values=q_values,
        is_target=is_target,
        clusters=clusters,
        targets=targets,
        expected_share=share,
        share_p_value=float(test.pvalue),
        leaning=bool(beyond.pvalue < level),
        resolution=int(np.ceil(ratio / fdr - 1e-9)),
        excess=found,
        closest=chosen[: found.depth][target[: found.depth]],
    )


def _clusters(matches: NDArray[np.int64], links: NDArray[np.int64]) -> NDArray[np.int64]:
    """Numbers the groups of images joined by an equal match or by a link."""
    n = len(matches)
    _, number = np.unique(matches, return_inverse=True)
    # Every match is one more node, joined to all images that match it.
    left = np.concatenate([np.arange(n), links[:, 0]])
    right = np.concatenate([n + number, links[:, 1]])
    component = components(left, right, n + int(number.max()) + 1)
    return np.unique(component[:n], return_inverse=True)[1].astype(np.int64)


def components(left: NDArray[np.int64], right: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Numbers the connected components of a graph with edges from `left` to `right`, (size,)."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    graph = coo_matrix((np.ones(len(left), bool), (left, right)), shape=(size, size))
    return connected_components(graph, directed=False)[1].astype(np.int64)
