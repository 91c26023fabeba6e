"""From scores to p-values to flags: split conformal inference and Benjamini-Hochberg.

A score says how much closer an image is to its nearest training image than is usual; small is
suspicious. What is usual comes from held-out real images, whose scores are computed the same way.
If a synthetic image is no more a copy than a fresh real image is, its rank among the hold-out's
scores is uniform, whatever the score's distribution: that is its p-value.

Vovk, Gammerman and Shafer 2005, "Algorithmic Learning in a Random World"; Bates et al. 2023,
"Testing for outliers with conformal p-values", which shows that these p-values may be handed to
Benjamini and Hochberg 1995 although they share one hold-out. https://arxiv.org/abs/2104.08279
"""

import math

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]

_CHUNK_VALUES = 8_000_000


def conformal_p_values(scores: Scores, null: Scores) -> NDArray[np.float64]:
    """p = (1 + #{hold-out images that rank as low}) / (n + 1), exact for every n and with ties.

    With several scores per image, an image ranks as low as the lowest of its ranks. Ranks are taken
    among the hold-out images and the image itself, which leaves hold-out and image exchangeable: so
    one p-value covers all the scores, without a Bonferroni factor.

    Args:
        scores: float64 (m, s), one column per kind of score, small is suspicious.
        null: float64 (n, s), the hold-out's, n at least 1.

    Returns:
        float64 (m,), in [1 / (n + 1), 1].

    >>> conformal_p_values(np.array([[0.5], [2.5]]), np.array([[1.0], [2.0], [3.0]]))
    array([0.25, 0.75])
    """
    n, s = null.shape
    # Rank of a value among n + 1: how many are at most as large, itself included.
    rank_of_scores = np.stack(
        [1 + np.searchsorted(np.sort(null[:, j]), scores[:, j], "right") for j in range(s)], axis=1
    )
    lowest = rank_of_scores.min(axis=1)
    if s == 1:
        return lowest / (n + 1)
    ranks = np.stack(
        [np.searchsorted(np.sort(null[:, j]), null[:, j], "right") for j in range(s)], axis=1
    )
    p = np.empty(len(scores))
    rows = max(1, _CHUNK_VALUES // n)
    for start in range(0, len(scores), rows):
        part = slice(start, start + rows)
        as_low = np.zeros((len(scores[part]), n), bool)
        for j in range(s):
            # The image itself comes before every hold-out value that is not below its own.
            rank = ranks[None, :, j] + (scores[part, j, None] <= null[None, :, j])
            as_low |= rank <= lowest[part, None]
        p[part] = (1 + as_low.sum(axis=1)) / (n + 1)
    return p


def q_values(p_values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Smallest false discovery rate at which Benjamini-Hochberg would flag each row, float64 (m,).

    >>> q_values(np.array([0.01, 0.04, 0.03, 0.5]))
    array([0.04      , 0.05333333, 0.05333333, 0.5       ])
    """
    m = len(p_values)
    order = np.argsort(p_values, kind="stable")
    stepped = p_values[order] * m / np.arange(1, m + 1)
    q = np.empty(m)
    q[order] = np.minimum.accumulate(stepped[::-1])[::-1]
    return np.minimum(q, 1)


def resolution(num_rows: int, num_holdout: int, fdr: float) -> int:
    """Fewest rows that Benjamini-Hochberg can flag when all have the smallest possible p-value.

    With p = 1 / (n + 1) for j of m rows, they are flagged if 1 / (n + 1) <= fdr j / m.

    >>> resolution(5000, 10_000, 0.05)
    10
    """
    exact = num_rows / (fdr * (num_holdout + 1))
    return max(1, math.ceil(exact - 1e-9))
