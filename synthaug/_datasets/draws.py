"""In which order, and how often, the synthetic images of a class are drawn."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, final

import numpy as np

from synthaug._cache.serving import SyntheticImages, num_rows
from synthaug._datasets.filters import Scores, named, scores_of
from synthaug._support.arguments import check_at_least, check_fields, check_type
from synthaug._types import Doubles, Indices

Rng = np.random.Generator


class Draw(ABC):
    """A rule of drawing, made for one cache."""

    weights: Doubles | None = None
    """Weight of every row of the cache; `None` if none matter."""
    served: Doubles | None = None
    """Probability with which every row that is drawn is served; `None` if all are."""

    @abstractmethod
    def arranged(self, rows: Indices) -> Indices:
        """The rows of one class, sorted as the two methods below want them."""

    @abstractmethod
    def for_epoch(self, rng: Rng, pool: Indices, count: int) -> Indices:
        """A number of draws from the rows of a class, for one epoch."""

    def from_stream(
        self, rng: Callable[[int], Rng], pool: Indices, first: int, count: int
    ) -> Indices:
        """Draws number `first` to `first + count` of a stream without end.

        Args:
            rng: Gives the generator of any part of the stream.
            pool: Rows of one class.
            first: Number of draws before these.
            count: Number of draws.
        """
        return self.for_epoch(rng(first), pool, count)


@final
class _Decks(Draw):
    """Every image equally often: decks of all images of a class, each dealt anew.

    Args:
        deal: Puts the rows of a class into a random order.
        scores: Scores to sort the rows by before they are dealt; their numbers by default.
        served: Probability with which every row that is drawn is served.
    """

    def __init__(
        self,
        deal: Callable[[Rng, Indices], Indices],
        scores: Doubles | None = None,
        served: Doubles | None = None,
    ) -> None:
        self._deal, self._scores = deal, scores
        self.weights = self.served = served

    def arranged(self, rows: Indices) -> Indices:
        if self.served is not None:
            return rows[self.served[rows] > 0]
        return rows if self._scores is None else rows[np.lexsort((rows, self._scores[rows]))]

    def for_epoch(self, rng: Rng, pool: Indices, count: int) -> Indices:
        rounds = -(-count // len(pool))
        return np.concatenate([self._deal(rng, pool) for _ in range(rounds)])[:count]

    def from_stream(
        self, rng: Callable[[int], Rng], pool: Indices, first: int, count: int
    ) -> Indices:
        rounds = range(first // len(pool), (first + count - 1) // len(pool) + 1)
        decks = [self._deal(rng(r), pool) for r in rounds]
        skip = first - rounds[0] * len(pool)
        return np.concatenate(decks)[skip : skip + count]


@final
@dataclass(frozen=True)
class Stratified:
    """Equally often from the easy and from the hard images of a class.

        Stratified(hardness, parts=5)      # a `HardnessReport`: every fifth equally often

    Each class is divided by its scores into parts of equal size, and every epoch draws equally
    often from each; nearly so where counts are not multiples of `parts`.
    """

    scores: Scores = field(repr=False)
    """A report, or one number per row, float (N,)."""
    parts: int
    """At least 2."""

    def __post_init__(self) -> None:
        check_fields(self)
        check_at_least(2, parts=self.parts)

    def bound(self, synthetic: SyntheticImages, rows: Indices) -> Draw:
        """The rule for some rows of a cache."""
        values = np.full(num_rows(synthetic), np.nan)
        values[rows] = scores_of(self.scores, synthetic, rows)
        return _Decks(partial(dealt, strata=self.parts), values)

    def __str__(self) -> str:
        return f"equally from {self.parts} strata of {named(self.scores)}"


@final
@dataclass(frozen=True)
class Weighted:
    """In proportion to a weight per row.

        Weighted(weights)                  # any array, float (N,)

    In an epoch with n draws from a class, a row with the share w of its class's weight is drawn n w
    times, rounded up or down at random. Weight 0 is never drawn.
    """

    weights: Scores = field(repr=False)
    """A report, or one number per row, float (N,), at least 0 and finite."""

    def bound(self, synthetic: SyntheticImages, rows: Indices) -> Draw:
        """The rule for some rows of a cache."""
        weights = np.zeros(num_rows(synthetic))
        weights[rows] = scores_of(self.weights, synthetic, rows)
        bad = rows[~((weights[rows] >= 0) & (weights[rows] < np.inf))]
        if len(bad):
            raise ValueError(
                f"Weights must be at least 0 and finite, row {bad[0]} has {weights[bad[0]]:g}."
            )
        return _ByWeight(weights)

    def __str__(self) -> str:
        return f"weighted by {named(self.weights)}"


@final
@dataclass(frozen=True)
class WeightedDraws:
    """Every image equally often, but served with a probability of its own only.

        WeightedDraws(0.3)                 # of the whole cache
        WeightedDraws(weights)             # any array, float (N,)

    An image that is drawn and not served leaves the real one in its place, so on average the loss
    is that in which it counts its weight, whatever the loss is. For `mode="replace"`. Weight 0 is
    never served.
    """

    weights: Scores | float = field(repr=False)
    """One number, a report, or one number per row, float (N,), in [0, 1]."""

    def bound(self, synthetic: SyntheticImages, rows: Indices) -> Draw:
        """The rule for some rows of a cache."""
        return _Decks(shuffled, served=row_weights(self.weights, synthetic, rows))

    def __str__(self) -> str:
        share = f"{self.weights:g}" if np.ndim(self.weights) == 0 else named(self.weights)
        return f"equally often, served with probability {share}"


def row_weights(weights: Scores | float, synthetic: SyntheticImages, rows: Indices) -> Doubles:
    """How much every row of a cache counts, float64 (N,); 0 where it is not among `rows`.

    Args:
        weights: One number, a report, or one number per row, float (N,).
        synthetic: The cache.
        rows: The rows that may be served.

    Raises:
        ValueError: For a weight that is not in [0, 1], or another number of rows.
        MismatchError: For a report about another cache.
    """
    values = np.zeros(num_rows(synthetic))
    if isinstance(weights, int | float):
        values[rows] = weights
    else:
        values[rows] = scores_of(weights, synthetic, rows)
    bad = rows[~((values[rows] >= 0) & (values[rows] <= 1))]
    if len(bad):
        raise ValueError(
            f"Weights must be in [0, 1], row {bad[0]} has {values[bad[0]]:g}. Divide them by the "
            "largest."
        )
    return values


@final
class _ByWeight(Draw):
    weights: Doubles

    def __init__(self, weights: Doubles) -> None:
        self.weights = weights

    def arranged(self, rows: Indices) -> Indices:
        return rows[self.weights[rows] > 0]

    def for_epoch(self, rng: Rng, pool: Indices, count: int) -> Indices:
        # Systematic sampling: points at equal distances along the weights, from a random start.
        order = shuffled(rng, pool)
        ends = np.cumsum(self.weights[order])
        points = (rng.random() + np.arange(count)) * (ends[-1] / count)
        where = np.searchsorted(ends, points, side="right")
        return shuffled(rng, order[np.minimum(where, len(order) - 1)])


def bound_draw(draw: Any, synthetic: SyntheticImages, rows: Indices) -> Draw:
    """The rule of drawing for some rows of a cache; a TypeError for no rule, a ValueError for
    scores or weights that do not fit."""
    if draw is None:
        return _Decks(shuffled)
    remedy = (
        "`mixing.Stratified`, `mixing.Weighted`, `mixing.WeightedDraws`, or None for every image "
        "equally often"
    )
    check_type(Stratified | Weighted | WeightedDraws, remedy, draw=draw)
    rule: Draw = draw.bound(synthetic, rows)
    return rule


def shuffled(rng: Rng, values: Indices) -> Indices:
    """The values in a random order."""
    # By sorting uniform numbers: numpy may change `permutation` between versions.
    return values[np.argsort(rng.random(len(values)), kind="stable")]


def dealt(rng: Rng, values: Indices, strata: int) -> Indices:
    """The values in a random order, of which every part has its share of every stratum.

    Each run of `strata` values, counted from the start, holds one of each stratum in random order,
    until the smaller strata, which have one value less, are used up.

    Args:
        rng: Draws two numbers per value.
        values: Sorted, so that strata are parts of equal size, up to one, that follow one another.
        strata: How many.
    """
    n = len(values)
    stratum = np.arange(n) * strata // n
    order = np.lexsort((rng.random(n), stratum))  # shuffled within strata
    place = np.arange(n) - np.searchsorted(stratum, stratum)  # of those, in their strata
    return values[order[np.lexsort((rng.random(n), place))]]
