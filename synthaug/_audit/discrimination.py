"""How well a score tells two sets of images apart, where near-duplicates count as one.

The names "member" and "other" of the images are dealt out anew at random, as the split that made
the two sets did. Near-duplicates keep together: a whole group changes places with another group of
as many images of the same classes. That leaves every split equally likely whether it was made image
by image or group by group, and with or without regard to classes, so the p-value is exact for all
of these.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, norm, rankdata

from synthaug._noise import counter_rng
from synthaug._types import Indices, Labels

Flags = NDArray[np.bool_]
Doubles = NDArray[np.float64]

ASSIGNMENTS = 10_000
"""Random assignments of the names: the smallest p-value is 1e-4."""

_AT_ONCE = 4_000_000
"""Names that are dealt out at once, for the memory's sake."""


@dataclass(frozen=True, kw_only=True)
class Division:
    """Both sets of images together, N in all."""

    member: Flags
    """Which images are of the first set, (N,)."""
    group: Indices
    """Number of the group of near-duplicates, int64 (N,), found without regard to the sets."""
    strata: Indices
    """Number of the groups that may change places, int64 (N,); see `strata_of`."""

    @classmethod
    def of(cls, member: Flags, group: Indices, labels: Labels) -> "Division":
        """The division of images with these classes, -1 if unknown."""
        return cls(member=member, group=group, strata=strata_of(group, labels))


@dataclass(frozen=True, kw_only=True)
class Discrimination:
    """How well scores tell the members of a division from the others."""

    auc: float
    """Probability that a random member scores higher than a random other image, ties halved."""
    interval: tuple[float, float]
    """Within which it lies with a confidence of 0.95."""
    p_value: float
    """Chance that names dealt out at random reach such an AUC (one-sided)."""

    @classmethod
    def of(cls, scores: Doubles, division: Division, *, seed: int) -> "Discrimination":
        """How well these scores (N,), high for members, tell apart."""
        return cls(
            auc=auc(scores, division.member),
            interval=auc_interval(scores, division.member, division.group),
            p_value=permutation_p_value(scores, division, seed=seed),
        )


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """The share of members recognized at a given false positive rate."""

    false_positives: int
    """Other images above the threshold, which is set so that these are at most 1 %."""
    false_positive_interval: tuple[float, float]
    """Within which the share of others lies that are above it, with a confidence of 0.95."""
    true_positives: int
    """Members above the threshold."""
    rate: float
    """Their share of all members."""
    interval: tuple[float, float]
    """Within which that share lies with a confidence of 0.95, for this threshold."""


def strata_of(group: Indices, labels: Labels) -> Indices:
    """Numbers the groups that may change places: as many images, of the same classes.

    Args:
        group: Number of each image's group, int64 (N,).
        labels: Class of each image, int64 (N,).

    Returns:
        The number of each image's kind of group, int64 (N,).
    """
    order = np.lexsort((labels, group))
    parts = np.split(labels[order], np.flatnonzero(np.diff(group[order])) + 1)
    numbers: dict[tuple[int, ...], int] = {}
    kinds = [numbers.setdefault(tuple(part.tolist()), len(numbers)) for part in parts]
    strata = np.empty(len(group), np.int64)
    strata[order] = np.repeat(kinds, [len(part) for part in parts])
    return strata


def auc(scores: Doubles, member: Flags) -> float:
    """The probability that a member scores higher than another image, ties halved."""
    m, n = int(member.sum()), int((~member).sum())
    return float((rankdata(scores)[member].sum() - m * (m + 1) / 2) / (m * n))


def auc_interval(scores: Doubles, member: Flags, group: Indices) -> tuple[float, float]:
    """Within which the AUC lies with a confidence of 0.95.

    By the variance of DeLong et al. 1988, "Comparing the areas under two or more correlated
    receiver operating characteristic curves", summed by group as Obuchowski 1997 does,
    "Nonparametric analysis of clustered ROC curve data", on the scale of log odds. Where all
    members score higher, or none does, that variance is 0: then of as many disjoint pairs as there
    are, all were told apart, which bounds the probability.
    """
    area = auc(scores, member)
    own, others = np.sort(scores[member]), np.sort(scores[~member])
    above = np.empty(len(scores))  # share of the other set that is below a member, above another
    above[member] = _share_below(others, scores[member]) - area
    above[~member] = 1 - _share_below(own, scores[~member]) - area
    influence = above / np.where(member, len(own), len(others))
    sums = np.bincount(np.unique(group, return_inverse=True)[1], weights=influence)
    deviation = float(np.sqrt(len(sums) / max(1, len(sums) - 1) * (sums**2).sum()))
    if deviation == 0 or not 0 < area < 1:
        pairs = min(len(np.unique(group[member])), len(np.unique(group[~member])))
        return proportion_interval(round(area * pairs), pairs)
    odds = np.log(area / (1 - area))
    half = norm.ppf(0.975) * deviation / (area * (1 - area))
    low, high = 1 / (1 + np.exp(-(odds + half * np.array([-1, 1]))))
    return float(low), float(high)


def _share_below(sorted_values: Doubles, values: Doubles) -> Doubles:
    """Returns the share of some values that is below each of others; ties count half."""
    left = np.searchsorted(sorted_values, values, "left")
    return (left + np.searchsorted(sorted_values, values, "right")) / (2 * len(sorted_values))


def permutation_p_value(scores: Doubles, division: Division, *, seed: int) -> float:
    """The chance that names dealt out at random give members ranks as high as these, one-sided."""
    ranks, rng = rankdata(scores), counter_rng(seed, 6)
    observed, by_chance = 0.0, np.zeros(ASSIGNMENTS)
    for kind in range(int(division.strata.max()) + 1):
        rows = np.flatnonzero(division.strata == kind)
        rows = rows[np.argsort(division.group[rows], kind="stable")]
        groups = len(np.unique(division.group[rows]))
        named, weights = division.member[rows].reshape(groups, -1), ranks[rows].reshape(groups, -1)
        observed += float((named * weights).sum())
        at_once = max(1, _AT_ONCE // len(rows))
        for start in range(0, ASSIGNMENTS, at_once):
            count = min(at_once, ASSIGNMENTS - start)
            order = rng.permuted(np.tile(np.arange(groups), (count, 1)), axis=1)
            by_chance[start : start + count] += np.einsum("bgs,gs->b", named[order], weights)
    # Equal but for rounding counts as equal.
    return float((1 + (by_chance >= observed - 1e-6).sum()) / (1 + ASSIGNMENTS))


def operating_point(scores: Doubles, member: Flags, rate: float = 0.01) -> OperatingPoint | None:
    """Returns the operating point at a false positive rate; `None` if there are too few
    non-members.
    """
    others, threshold = scores[~member], threshold_at(scores[~member], rate)
    if threshold is None:
        return None
    wrong, right = int((others > threshold).sum()), int((scores[member] > threshold).sum())
    return OperatingPoint(
        false_positives=wrong,
        false_positive_interval=proportion_interval(wrong, len(others)),
        true_positives=right,
        rate=right / int(member.sum()),
        interval=proportion_interval(right, int(member.sum())),
    )


def threshold_at(others: Doubles, rate: float = 0.01) -> float | None:
    """The least threshold that at most such a share of scores is above; `None` if that is none."""
    allowed = int(rate * len(others) + 1e-9)
    return float(np.sort(others)[::-1][allowed]) if allowed else None


def proportion_interval(count: int, total: int) -> tuple[float, float]:
    """Within which a probability lies with a confidence of 0.95 (Clopper and Pearson 1934)."""
    low = 0.0 if count == 0 else float(beta.ppf(0.025, count, total - count + 1))
    high = 1.0 if count == total else float(beta.ppf(0.975, count + 1, total - count))
    return low, high
