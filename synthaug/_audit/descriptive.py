"""Numbers from the literature, each beside the hold-out's own. They describe; they decide nothing.

None has a universal reference value: fresh real images score anything from 37 % to 92 % authentic,
depending on the features alone. So only the difference to the hold-out means something.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from synthaug._audit.matches import Matches
from synthaug._types import JSON

CARLINI_RATIO = 0.5
"""Carlini et al. 2023 call an image extracted if it is at less than half the usual distance."""

HIGH_CORRELATION = 0.95


def descriptive(
    rows: Matches, null: Matches | None, isolation: Sequence[NDArray[np.float64]]
) -> list[dict[str, JSON]]:
    """Descriptive numbers of synthetic and hold-out images.

    Args:
        rows: Matches of the synthetic images.
        null: Matches of the hold-out images.
        isolation: For either, how far the nearest training image of each of its images, by the
            first statistic, is from the nearest other one, (n,).

    Returns:
        Records of `name`, `meaning`, `synthetic` and `holdout`, the last `None` without a hold-out.
    """
    sets = [rows] if null is None else [rows, null]
    values: list[tuple[str, str, list[float]]] = [
        (
            "authentic share",
            "images farther from their nearest training image than that is from its own nearest "
            "(AuthPct, Alaa et al. 2022)",
            [
                float((m.distances[:, 0] > isolated).mean())
                for m, isolated in zip(sets, isolation, strict=True)
            ],
        ),
        (
            f"ratio below {CARLINI_RATIO}",
            "images at less than half the distance of their next neighbors (Carlini et al. 2023)",
            [float((m.scores[:, 0] < CARLINI_RATIO).mean()) for m in sets],
        ),
        (
            f"correlation above {HIGH_CORRELATION}",
            "images that correlate so well with a training image under the best alignment",
            [float((1 - m.distances[:, -1] ** 2 / 2 > HIGH_CORRELATION).mean()) for m in sets],
        ),
    ]
    records: list[dict[str, JSON]] = [
        {"name": name, "meaning": meaning, "synthetic": v[0], "holdout": v[1] if v[1:] else None}
        for name, meaning, v in values
    ]
    if null is not None:
        records.append(
            {
                "name": "C_T, one cell",
                "meaning": "Mann-Whitney z-score of the distances to training images; far below 0 "
                "means closer than real images, by copying or by smoothness (Meehan et al. 2020)",
                "synthetic": mann_whitney_z(rows.distances[:, 0], null.distances[:, 0]),
                "holdout": 0.0,
            }
        )
    return records


def mann_whitney_z(x: np.ndarray, y: np.ndarray) -> float:
    """z-score of the Mann-Whitney U statistic of `x` over `y`: 0 if neither tends to be larger."""
    from scipy.stats import rankdata

    n, m = len(x), len(y)
    pooled = np.concatenate([x, y])
    ranks = rankdata(pooled)
    u = float(ranks[:n].sum() - n * (n + 1) / 2)
    _, ties = np.unique(pooled, return_counts=True)
    tied = float((ties.astype(float) ** 3 - ties).sum()) / ((n + m) * (n + m - 1))
    variance = n * m / 12 * (n + m + 1 - tied)
    return (u - n * m / 2) / variance**0.5 if variance > 0 else 0.0
