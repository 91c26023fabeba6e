"""From scores to p-values to flags: split conformal inference and Benjamini-Hochberg.

A score says how much closer an image is to its nearest training image than is usual; small is
suspicious. What is usual comes from held-out real images, whose scores are computed the same way.
If a synthetic image is no more a copy than a fresh real image is, its rank among the hold-out's
scores is uniform, whatever the score's distribution: that is its p-value.

Vovk, Gammerman and Shafer 2005, "Algorithmic Learning in a Random World"; Bates et al. 2023,
"Testing for outliers with conformal p-values", which shows that these p-values may be handed to
Benjamini and Hochberg 1995 although they share one hold-out. https://arxiv.org/abs/2104.08279
"""

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]


TAIL = 0.01
"""Share of all images that is closest by each score: how close these come is the unit of the score.
Copies are few, and come closer than that."""


def closeness(
    scores: Scores, unit: NDArray[np.float64] | None = None, *, power: float = 2
) -> NDArray[np.float64]:
    """How close each image comes by all its scores together, small is suspicious.

    Every score is measured in units of how close the closest `TAIL` of all images come by it, and
    1 over the root of the sum of 1 / score² is taken, or of another power: the lowest score
    decides, and others that are as low add to it. So a copy that stands far out by one score comes
    before images that are the first by another one, as some always are, and scores by which nothing
    stands out cost little.
    Which images are held out plays no part, so that held-out and other images stay exchangeable.

    Args:
        scores: Scores of all images, float64 (n, s), one column per kind of score.
        unit: Unit of each score, (s,); by default that of these images.
        power: The larger it is, the more the lowest score decides alone.

    Returns:
        float64 (n,).

    >>> closeness(np.array([[0.1, 5.0], [1.0, 8.0]]), np.array([1.0, 10.0])).round(3).tolist()
    [0.098, 0.625]
    """
    if not len(scores):
        return np.zeros(0)
    with np.errstate(divide="ignore"):  # 1 / 0 is infinite, and its inverse 0
        share = (units(scores) if unit is None else unit) / scores
        return (share**power).sum(axis=1) ** (-1 / power)


def units(scores: Scores) -> NDArray[np.float64]:
    """The unit of each score for `closeness`, float64 (s,)."""
    # Where even the tail is at distance 0, so are copies: nothing stands out.
    return np.quantile(scores, TAIL, axis=0).clip(min=1e-12)


def conformal_p_values(
    values: NDArray[np.float64],
    null: NDArray[np.float64],
    *,
    weights: NDArray[np.float64] | None = None,
    null_weights: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """p = (1 + #{hold-out images that come as close}) / (n + 1), exact for every n and with ties.

    With weights this is weighted conformal inference (Tibshirani et al. 2019, "Conformal prediction
    under covariate shift"): hold-out images count as often as their class is synthetic.

    Args:
        values: Closeness of the images, float64 (m,), small is suspicious.
        null: The hold-out's, (n,), n at least 1.
        weights: How often images like each one are synthetic, over how often they are held out,
            float64 (m,); by default 1.
        null_weights: The same of the hold-out images, (n,).

    Returns:
        float64 (m,), in [1 / (n + 1), 1].

    >>> conformal_p_values(np.array([0.5, 2.5]), np.array([1.0, 2.0, 3.0])).tolist()
    [0.25, 0.75]
    """
    own = np.ones(len(values)) if weights is None else weights
    order = np.argsort(null, kind="stable")
    weight = np.ones(len(null)) if null_weights is None else null_weights
    up_to = np.concatenate([[0], np.cumsum(weight[order])])
    as_close = np.searchsorted(null[order], values, "right")
    return (own + up_to[as_close]) / (up_to[-1] + own)


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
