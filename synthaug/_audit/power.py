"""How much an audit sees: its own tests, run again with copies among the synthetic images.

Copies of a kind take the places of random synthetic images, few or many, again and again, and the
tests are repeated. A number of copies counts as noticed, or as flagged, if it was in `SURE` of the
draws. What the audit says of itself comes from these draws alone.
"""

import math
from bisect import bisect_left
from functools import cache

import numpy as np
from numpy.typing import NDArray

from synthaug._audit.calibration import closeness, units
from synthaug._audit.decisions import ROWS_SHARE, TOGETHER, AuditPool, Calibrated
from synthaug._audit.disturbances import Disturbance
from synthaug._audit.inputs import AuditSet, keys, take
from synthaug._audit.matches import Matches
from synthaug._audit.pairs import Pick
from synthaug._audit.precedence import Precedence, depth_of, surprise
from synthaug._audit.tiers import Power
from synthaug._noise import counter_rng
from synthaug._types import Indices

SURE = 0.85
"""Share of the draws in which a number of copies must be noticed, or half of them flagged."""

PLANTED = 50
"""Training images of which copies are made, of every kind."""

_DRAWS = 20

_LADDER = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 75, 100, 150, 200, 300, 500, 1000)


_SMALLEST_COUNT, _SMALLEST_SHARE, _LARGEST_SHARE = 25, 0.02, 0.1
"""An audit may say "pass" only if it would have noticed so many copies, or the smallest share of
the rows if that is more; of few rows never more than the largest share."""

_LARGEST_PLANTED_SHARE = 0.25
"""Of few rows, up to this share is replaced by copies, to find how many could be flagged."""


def power_without_holdout(kind: Disturbance, planted: Matches, found: float) -> Power:
    """Returns the power for planted copies if only equal pixels are looked for."""
    share = float(planted.near_equal.mean())
    seen = 1 if share >= SURE else None
    return Power(
        kind=kind.name,
        required=kind.required,
        planted=len(planted.twins),
        power=share,
        interval=_interval(int(planted.near_equal.sum()), len(planted.twins)),
        found=found,
        alike=float(planted.resembling.mean()),
        noticed=seen,
        needed=seen,
    )


class Planting:
    """Repeats an audit's tests with copies among its synthetic images.

    Args:
        pool: The images of the audit.
        calibrated: The results of its tests.
        fdr: False discovery rate of the rows.
        seed: For the draws.
    """

    def __init__(self, pool: AuditPool, calibrated: Calibrated, fdr: float, seed: int) -> None:
        self._pool, self._fdr, self._seed = pool, fdr, seed
        self._m = len(pool.rows.twins)
        everything = np.ones(len(pool.group), bool)
        self._tests = [
            _Test(pool, keep, calibrated.tests[name], ROWS_SHARE * fdr)
            for name, keep in (("all", everything), ("rest", ~pool.resembling))
        ]

    def power(self, kind: Disturbance, planted: Matches, found: float, number: int) -> Power:
        """Returns the power for copies of one kind.

        Args:
            kind: How they were changed.
            planted: How close they come to the training images.
            found: Share of them whose nearest training image is the original.
            number: Number of the kind, for the draws.
        """
        members = [np.ones(len(planted.twins), bool), ~planted.resembling]
        values = [test.of(planted, m) for test, m in zip(self._tests, members, strict=True)]
        few = math.ceil(_LARGEST_PLANTED_SHARE * self._m)
        largest = max(visible(self._m), min(_SMALLEST_COUNT, few))
        ladder = [count for count in _LADDER if count < largest] + [largest]

        @cache
        def draws(step: int) -> tuple[float, float, float]:
            return self._draws(planted, values, ladder[step], number)

        def first(which: int) -> int | None:
            """The lowest step of the ladder that is sure, as more copies are seen more surely."""
            step = bisect_left(range(len(ladder)), SURE, key=lambda step: draws(step)[which])
            return ladder[step] if step < len(ladder) else None

        _, _, flagged = draws(len(ladder) - 1)
        return Power(
            kind=kind.name,
            required=kind.required,
            planted=largest,
            power=flagged,
            interval=_interval(round(flagged * _DRAWS), _DRAWS),
            found=found,
            alike=float(planted.resembling.mean()),
            noticed=first(0),
            needed=first(1),
        )

    def _draws(
        self,
        planted: Matches,
        values: list[tuple[NDArray[np.float64], NDArray[np.float64]]],
        count: int,
        number: int,
    ) -> tuple[float, float, float]:
        """Share of draws with copies noticed, and with half of them flagged; share flagged."""
        noticed, shares = np.zeros(_DRAWS, bool), np.zeros(_DRAWS)
        copies = len(planted.twins)
        for draw in range(_DRAWS):
            rng = counter_rng(self._seed, 6 + number, count, draw)
            chosen = rng.choice(copies, count, replace=count > copies)
            replaced = np.zeros(self._m, bool)
            replaced[rng.choice(self._m, count, replace=False)] = True
            flagged = np.zeros(count, bool)
            noticed[draw] = planted.near_equal[chosen].any()
            for test, (value, p) in zip(self._tests, values, strict=True):
                limit = test.flagged_up_to(p[chosen], replaced, ROWS_SHARE * self._fdr)
                flagged |= p[chosen] <= limit
                member = chosen[np.isfinite(value[chosen])]
                noticed[draw] |= limit > 0 or test.rejects(value[member], replaced)
            shares[draw] = flagged.mean()
        return float(noticed.mean()), float((shares >= 0.5).mean()), float(shares.mean())


class _Test:
    """One of an audit's comparisons, ready to be repeated with other synthetic images."""

    def __init__(
        self, pool: AuditPool, keep: NDArray[np.bool_], test: Precedence, fdr: float
    ) -> None:
        self.p = pool.p_values(keep)
        # Copies are few, and hardly move the units.
        self._unit = units(pool.scores[keep]) if keep.any() else np.ones(pool.scores.shape[1])
        # No larger p-value is ever flagged.
        self._low = np.flatnonzero(self.p <= fdr)
        self._p, self._tested = self.p[self._low], np.isfinite(self.p).sum()
        self._pool, self._keep = pool, keep
        self._critical = test.excess.critical
        self._m = len(pool.rows.twins)
        self._ranking, self._depth = test.ranking, depth_of(len(test.ranking))
        self._is_synthetic = test.ranking < self._m
        self._share = self._is_synthetic.mean() if len(test.ranking) else 0.0
        self._closeness = self._of(pool.scores[test.ranking])
        # Every draw asks anew: whether so many copies among so many first places are too many.
        places = np.arange(1, self._depth + 1)
        counts = np.minimum(np.arange(self._depth + 1)[:, None], places)
        self._too_many = surprise(counts, self._share * places, places) >= self._critical

    def of(
        self, planted: Matches, member: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Closeness and p-value of planted copies; infinite and NaN for those that take no part."""
        value, p = np.full(len(member), np.inf), np.full(len(member), np.nan)
        if member.any():
            value[member] = self._of(planted.scores[member])
            p[member] = self._pool.p_of(planted.scores[member], self._keep)
        return value, p

    def flagged_up_to(self, planted: NDArray[np.float64], replaced: Indices, fdr: float) -> float:
        """The largest p-value that Benjamini and Hochberg flag with copies in place of some rows.

        Args:
            planted: p-values of the copies; NaN for those that take no part.
            replaced: Whether each row is, (m,).
            fdr: False discovery rate.
        """
        others = self._p[~replaced[self._low]]
        low = np.sort(np.concatenate([planted[planted <= fdr], others]))
        tested = self._tested - np.isfinite(self.p[replaced]).sum() + np.isfinite(planted).sum()
        flagged = np.flatnonzero(low <= fdr * np.arange(1, len(low) + 1) / tested)
        return float(low[flagged[-1]]) if len(flagged) else 0.0

    def rejects(self, copies: NDArray[np.float64], replaced: NDArray[np.bool_]) -> bool:
        """Whether the test of the whole set would reject with copies in place of some rows."""
        if not np.isfinite(self._critical):
            return False
        # Rows behind these do not come to the first places, whichever are replaced.
        head = slice(0, self._depth + int(replaced.sum()))
        synthetic = self._is_synthetic[head]
        kept = ~(synthetic & replaced[self._ranking[head].clip(max=self._m - 1)])
        names = np.concatenate([np.ones(len(copies), bool), synthetic[kept]])
        values = np.concatenate([copies, self._closeness[head][kept]])
        counts = np.cumsum(names[np.argsort(values, kind="stable")[: self._depth]])
        return bool(self._too_many[counts, np.arange(len(counts))].any())

    def _of(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        return closeness(scores, self._unit, power=TOGETHER)


def visible(num_rows: int) -> int:
    """Number of copies that a passing audit of so many rows must have been able to notice."""
    few = min(_SMALLEST_COUNT, math.ceil(_LARGEST_SHARE * num_rows))
    return max(few, math.ceil(_SMALLEST_SHARE * num_rows))


def share_found(pick: Pick, T: AuditSet, originals: Indices) -> float:
    """Share of planted copies whose nearest training image is their original.

    Training images may repeat: any of equal ones is the original.
    """
    content, wanted = (keys(take(T.samples, rows)) for rows in (pick.neighbors, originals))
    return float((content == wanted).mean())


def _interval(hits: int, draws: int) -> tuple[float, float]:
    """Clopper and Pearson's interval at 0.95 for a share."""
    from scipy.stats import binomtest

    low, high = binomtest(hits, draws).proportion_ci(0.95)
    return float(low), float(high)
