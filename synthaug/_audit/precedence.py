"""A test of the whole set: are more synthetic images among the closest ones than chance explains?

A few copies among many images cannot be flagged one by one: with n held-out images no p-value is
below 1 / (n + 1), and Benjamini and Hochberg need several such. But they stand at the head of the
list. So both sets are put in one order by closeness, and for every t the synthetic images among the
t closest are counted. If synthetic and held-out images are exchangeable, and no copies, every
assignment of the names "synthetic" and "held out" to the places of that order is equally likely:
the most surprising count of all t is compared with that of random assignments. The test is exact
for every number of images.

Images that resemble each other come closest together or not at all, and are no independent
evidence: a group counts once, through its closest image. Groups are found without regard to which
set an image is from, which leaves the assignments equally likely.

Where classes are known the names are dealt out within each class, so that synthetic images may have
other shares of the classes than held-out ones.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import xlogy

from synthaug._noise import counter_rng
from synthaug._types import Indices

Flags = NDArray[np.bool_]

ASSIGNMENTS = 10_000
"""Random assignments that the observed one is compared with: the smallest p-value is 1e-4, and one
of 0.01 is known to within 0.0014."""

_DEPTH = 0.05
"""Share of the closest images in which an excess is looked for: copies that are not closer than so
many others are not told from chance by anybody."""

_DEPTH_AT_LEAST, _DEPTH_AT_MOST = 60, 1000


@dataclass(frozen=True, kw_only=True)
class Excess:
    """Where named places are most in excess of what chance explains."""

    p_value: float
    """Chance of such an excess; 1 if nothing is in excess."""
    depth: int
    """The number of first places among which the excess is; 0 if there is none."""
    count: int
    """Named places among these."""
    expected: float
    """How many of these places chance would name."""
    surprise: float
    """How far the count exceeds what is expected, as `critical` has it."""
    critical: float
    """The least surprise that chance reaches with a probability of at most the level."""


@dataclass(frozen=True, kw_only=True)
class Precedence:
    """Outcome of the test of synthetic against held-out images."""

    excess: Excess
    rows: Indices
    """Positions of the synthetic images among the closest ones, and of those in a group with them,
    closest first."""
    ranking: Indices
    """Positions of the closest image of each group, closest first."""


def precedence(
    closeness: NDArray[np.float64],
    is_synthetic: Flags,
    *,
    group: Indices,
    strata: Indices,
    level: float,
    seed: int,
) -> Precedence:
    """Tests whether synthetic images are among the closest more often than chance has it.

    Args:
        closeness: How close each image comes to training, small is close, float64 (N,). May depend
            on all images, but not on which of them are synthetic.
        is_synthetic: Mask of the synthetic images, (N,).
        group: Number of the group of images that resemble each other, int64 (N,), found without
            regard to `is_synthetic`.
        strata: Class of each image, int64 (N,); all alike if unknown.
        level: Chance at which an excess counts as one.
        seed: For ties and for the random assignments.
    """
    rng = counter_rng(seed, 3)
    order = np.lexsort((rng.random(len(closeness)), closeness))
    # The first image of each group, in order of closeness, represents it.
    first = np.sort(np.unique(group[order], return_index=True)[1])
    ranking = order[first]
    found = excess(is_synthetic[ranking], strata[ranking], level=level, rng=rng)
    closest = ranking[: found.depth]
    chosen = np.isin(group[order], group[closest[is_synthetic[closest]]])
    return Precedence(excess=found, rows=order[is_synthetic[order] & chosen], ranking=ranking)


def excess(
    named: Flags,
    strata: Indices | None = None,
    *,
    population: tuple[int, int] | None = None,
    level: float,
    rng: np.random.Generator,
) -> Excess:
    """Looks for the depth at which named places are most in excess.

    Args:
        named: Whether each place is named, (N,), the closest first.
        strata: Names are dealt out within these, (N,); by default all places are alike.
        population: How many there are, and how many of them are named, if the places are only some
            of them; without strata.
        level: Chance at which an excess counts as one.
        rng: For the random assignments.
    """
    classes = np.zeros(len(named), np.int64)
    if strata is not None and len(named):
        classes = np.unique(strata, return_inverse=True)[1]
    if population is None:
        sizes = np.bincount(classes, minlength=1)
        numbers = np.bincount(classes, weights=named, minlength=1).astype(np.int64)
    else:
        sizes, numbers = (np.array([count]) for count in population)
    depth = depth_of(len(named))
    if not 0 < numbers.sum() < sizes.sum() or depth == 0:
        return Excess(p_value=1, depth=0, count=0, expected=0, surprise=0, critical=np.inf)
    expected = np.cumsum((numbers / sizes.clip(min=1))[classes[:depth]])
    counts = np.cumsum(named[:depth])
    surprises = surprise(counts, expected, np.arange(1, depth + 1))
    highest = np.sort(_highest_by_chance(classes[:depth], sizes, numbers, expected, rng))
    at = int(surprises.argmax())
    # Equal but for rounding counts as equal.
    as_high = ASSIGNMENTS - np.searchsorted(highest, surprises[at] - 1e-9)
    allowed = int(level * (1 + ASSIGNMENTS)) - 1
    found = bool(surprises[at] > 0)
    return Excess(
        p_value=float(1 + as_high) / (1 + ASSIGNMENTS) if found else 1.0,
        depth=at + 1 if found else 0,
        count=int(counts[at]) if found else 0,
        expected=float(expected[at]) if found else 0.0,
        surprise=float(surprises[at]),
        critical=float(highest[ASSIGNMENTS - 1 - allowed]) if allowed >= 0 else np.inf,
    )


def depth_of(num_places: int) -> int:
    """Among how many of the first places an excess is looked for."""
    usual = min(_DEPTH_AT_MOST, round(_DEPTH * num_places))
    return min(num_places, max(_DEPTH_AT_LEAST, usual))


def _highest_by_chance(
    classes: Indices,
    sizes: Indices,
    numbers: Indices,
    expected: NDArray[np.float64],
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """The greatest surprise of each random assignment, float64 (ASSIGNMENTS,).

    The names are dealt out place by place, each with the chance that is left for it in the class of
    that place: the places behind the last one looked at need no name.

    Args:
        classes: Class of each place, (depth,).
        sizes: Images of each class, (c,).
        numbers: Synthetic ones among them, (c,).
        expected: Synthetic images expected up to each place, (depth,).
        rng: For the assignments.
    """
    left = np.repeat(numbers[:, None], ASSIGNMENTS, axis=1)
    unnamed = sizes.copy()
    count, highest = np.zeros(ASSIGNMENTS, np.int64), np.zeros(ASSIGNMENTS)
    for place, of_class in enumerate(classes.tolist()):
        synthetic = rng.random(ASSIGNMENTS) * unnamed[of_class] < left[of_class]
        left[of_class] -= synthetic
        unnamed[of_class] -= 1
        count += synthetic
        # Few counts are possible, of which each is far more often looked up than computed.
        of_count = surprise(np.arange(place + 2), expected[place], place + 1)
        np.maximum(highest, of_count[count], out=highest)
    return highest


def surprise(count: NDArray, expected: ArrayLike, places: NDArray | int) -> NDArray[np.float64]:
    """How far a count exceeds what is expected among so many places: 0 if it does not.

    This is the likelihood ratio of Berk and Jones 1979, "Goodness-of-fit test statistics that
    dominate the Kolmogorov statistics": places times the Kullback-Leibler divergence of the share
    counted from the share expected. It serves to compare depths; what is unusual is for the random
    assignments to say.
    """
    missing, expected = places - count, np.asarray(expected)
    # Where all places are sure to be named, nothing is missing, and 0 log(0 / 0) is 0.
    others = np.maximum(places - expected, 1e-9)
    value = xlogy(count, count / expected.clip(min=1e-9)) + xlogy(missing, missing / others)
    return np.where(count > expected, value, 0)
