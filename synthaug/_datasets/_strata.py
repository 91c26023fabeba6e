"""Which synthetic images are drawn by their hardness, and in which order."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthaug._serving import Scored, check_identity
from synthaug._types import Indices, Labels


def checked_hardness(
    synthetic: Any, hardness: Any, hardest: float | None, strata: int | None
) -> NDArray[np.float64] | None:
    """The hardness of every row, float64 (N,); `None` if nothing is drawn by it.

    Raises:
        ValueError: For arguments that do not go together, or scores of another number of rows.
        AuditMismatchError: For a report about another cache.
    """
    if hardest is None and strata is None:
        if hardness is not None:
            raise ValueError(
                "`hardness` was given, but not what to do with it: `hardest=0.2` serves the "
                "hardest fifth of each class, `strata=5` each fifth equally often."
            )
        return None
    if hardness is None:
        raise ValueError(
            "`hardest` and `strata` need `hardness`: the report of `synthaug.score_hardness`, or "
            "one number per row of the cache."
        )
    if hardest is not None and not 0 < hardest <= 1:
        raise ValueError(f"`hardest` must be in (0, 1], got {hardest}.")
    if strata is not None and strata < 2:
        raise ValueError(f"`strata` must be at least 2, got {strata}.")
    if isinstance(hardness, Scored):
        check_identity(synthetic, hardness, "`hardness`")
        hardness = hardness.hardness
    scores = np.asarray(hardness, np.float64)
    if scores.shape != (len(synthetic.labels),):
        raise ValueError(
            f"`hardness` has shape {scores.shape}, the cache has {len(synthetic.labels)} rows."
        )
    return scores


def by_hardness(
    rows: Indices, labels: Labels, hardness: NDArray[np.float64], hardest: float | None
) -> Indices:
    """Rows sorted by class and, within a class, from the easiest to the hardest.

    Args:
        rows: Those that may be served, int64 (n,).
        labels: Their classes, int64 (n,).
        hardness: Of every row of the cache, float64 (N,).
        hardest: Keeps this share of each class, rounded up; of equally hard rows those with the
            higher numbers.

    Raises:
        ValueError: If one of the rows has no hardness.
    """
    missing = rows[~np.isfinite(hardness[rows])]
    if len(missing):
        raise ValueError(
            f"{len(missing)} rows that may be served have no finite hardness, the first is row "
            f"{missing[0]}. Score the cache again."
        )
    order = np.lexsort((rows, hardness[rows], labels))
    if hardest is not None:
        counts = np.bincount(labels)
        kept = [math.ceil(n * hardest - 1e-9) for n in counts.tolist()]
        above = np.cumsum(counts)[labels[order]] - np.arange(len(order))  # 1 for the hardest
        order = order[above <= np.array(kept, np.int64)[labels[order]]]
    return rows[order]


def dealt(rng: np.random.Generator, values: Indices, strata: int) -> Indices:
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
