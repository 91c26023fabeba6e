"""Filters of the images that may be served, by scores, one per row."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, final, runtime_checkable

import numpy as np

from synthaug._cache.serving import (
    Scored,
    SyntheticImages,
    Verdicts,
    check_identity,
    labels_of,
    num_rows,
)
from synthaug._support.arguments import check_type, check_within
from synthaug._types import Array, Doubles, Flags, Indices, Labels

Scores = Any
"""A report about the cache (of hardness, label agreement or an audit), or numbers, float (N,)."""


@runtime_checkable
class Filter(Protocol):
    """A rule that says which rows of a cache are served."""

    def keep(self, synthetic: SyntheticImages, rows: Indices) -> Flags:
        """Returns a mask of the `rows` to keep, bool (n,)."""
        ...


@dataclass(frozen=True)
class _ByThreshold:
    """Base of `AtLeast` and `AtMost`."""

    _SIDE: ClassVar[str]

    scores: Scores = field(repr=False)
    """A report, or one number per row."""
    threshold: float
    """The smallest, or the largest, score that is served."""

    def __str__(self) -> str:
        return f"{named(self.scores)} {self._SIDE} {self.threshold:g}"


@final
class AtLeast(_ByThreshold):
    """Rows with a score of at least a threshold.

    AtLeast(check, 0.5)            # a `LabelCheck`: probability of the row's own label
    AtLeast(report, 0.05)          # an `AuditReport`: its p-values
    AtLeast(sharpness, 12.0)       # any array, float (N,)
    """

    _SIDE = "at least"

    def keep(self, synthetic: SyntheticImages, rows: Indices) -> Flags:
        """Returns a mask of the `rows` to keep, bool (n,)."""
        return scores_of(self.scores, synthetic, rows) >= self.threshold


@final
class AtMost(_ByThreshold):
    """Rows with a score of at most a threshold; arguments as `AtLeast`."""

    _SIDE = "at most"

    def keep(self, synthetic: SyntheticImages, rows: Indices) -> Flags:
        """Returns a mask of the `rows` to keep, bool (n,)."""
        return scores_of(self.scores, synthetic, rows) <= self.threshold


@dataclass(frozen=True)
class _ByRank:
    """Base of `Highest` and `Lowest`."""

    _SIGN: ClassVar[int]

    scores: Scores = field(repr=False)
    """A report, or one number per row."""
    share: float
    """How many of the rows that earlier filters left, in (0, 1], rounded up. Of equal scores those
    of higher rows are taken."""

    def __post_init__(self) -> None:
        check_within("(0, 1]", share=self.share)

    def keep(self, synthetic: SyntheticImages, rows: Indices) -> Flags:
        """Returns a mask of the `rows` to keep, bool (n,)."""
        labels = labels_of(synthetic, rows)
        scores = self._SIGN * scores_of(self.scores, synthetic, rows)
        return _top(scores, rows, labels, self.share)

    def __str__(self) -> str:
        name = type(self).__name__.lower()
        return f"{name} {self.share:.3g} of each class by {named(self.scores)}"


@final
class Highest(_ByRank):
    """Keeps the rows with the highest scores of each class.

    Highest(hardness, 0.2)         # a `HardnessReport`: of each class its hardest fifth
    """

    _SIGN = 1


@final
class Lowest(_ByRank):
    """Keeps the rows with the lowest scores of each class; arguments as `Highest`."""

    _SIGN = -1


def filtered(
    synthetic: SyntheticImages, rows: Indices, filters: Sequence[Any]
) -> tuple[Indices, list[str]]:
    """Applies a chain of filters, each to the rows that those before it kept.

    Args:
        synthetic: The cache.
        rows: The rows that may be served.
        filters: Filters of the classes above, reports with `passed`, or masks, bool (N,).

    Returns:
        The rows that are left, and a line about each filter.

    Raises:
        TypeError, ValueError: For something that is no filter, or does not fit the cache.
        MismatchError: For a report about another cache.
    """
    check_type(list | tuple, "a list: `filters=[...]`", filters=filters)
    lines = []
    for i, rule in enumerate(filters):
        if isinstance(rule, Filter):
            kept, name = rule.keep(synthetic, rows), str(rule)
        else:
            mask, name = _mask(rule, synthetic, f"`filters[{i}]`")
            kept = mask[rows]
        lines.append(f"{name}: {int(kept.sum()):,} of {len(rows):,} images left")
        rows = rows[kept]
    return rows, lines


def _mask(rule: Any, synthetic: SyntheticImages, name: str) -> tuple[Flags, str]:
    """A mask or the verdicts of a report as a mask, bool (N,), and what it is called in a log."""
    if isinstance(rule, Verdicts):
        check_identity(synthetic, rule, name, "Judge this cache, or leave the filter out.")
        mask, title = np.asarray(rule.passed), f"passed by the {type(rule).__name__}"
    else:
        mask, title = np.asarray(rule), "mask"
    if mask.dtype != bool:
        raise TypeError(
            f"{name} is a {type(rule).__name__} of {mask.dtype}, expected a mask, bool (N,), such "
            "as `scores > 0.5`; or `mixing.AtLeast`, `AtMost`, `Highest`, `Lowest`; or a report."
        )
    _check_rows(name, mask, synthetic)
    return mask, title


def _check_rows(name: str, values: Array, synthetic: SyntheticImages) -> None:
    rows = num_rows(synthetic)
    if values.shape != (rows,):
        raise ValueError(f"{name} has shape {values.shape}, the cache has {rows} rows.")


def scores_of(source: Scores, synthetic: SyntheticImages, rows: Indices) -> Doubles:
    """The scores of some rows, float64 (n,); a ValueError if one is missing, a MismatchError for a
    report about another cache."""
    if isinstance(source, Scored):
        check_identity(synthetic, source, f"The report of {named(source)}")
        source = source.row_scores
    scores = np.asarray(source, np.float64)
    _check_rows("An array of scores", scores, synthetic)
    missing = rows[np.isnan(scores[rows])]
    if len(missing):
        raise ValueError(
            f"{len(missing)} rows that may be served have no score, the first is row {missing[0]}. "
            "Score the cache again, or leave them out with the filter `~np.isnan(scores)`."
        )
    return scores[rows]


def named(source: Scores) -> str:
    """Returns the name of the score in a report, for people."""
    return source.score_name if isinstance(source, Scored) else "score"


def _top(scores: Doubles, rows: Indices, labels: Labels, share: float) -> Flags:
    order = np.lexsort((rows, scores, labels))
    counts = np.bincount(labels)
    kept = np.array([math.ceil(n * share - 1e-9) for n in counts.tolist()], np.int64)
    above = np.cumsum(counts)[labels[order]] - np.arange(len(order))  # 1 for the highest
    mask = np.zeros(len(rows), bool)
    mask[order] = above <= kept[labels[order]]
    return mask
