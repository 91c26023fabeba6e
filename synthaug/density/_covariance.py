"""Covariances of one class or of all, with and without each of the images they are fitted to."""

import math
from typing import Any, Literal, cast

import numpy as np

from synthaug._types import Array, Doubles, Labels

Structure = Literal["full", "tied", "diagonal"]
Estimator = Literal["ledoit_wolf", "oas", "empirical"]
STRUCTURES: tuple[Structure, ...] = ("full", "tied", "diagonal")
ESTIMATORS: tuple[Estimator, ...] = ("ledoit_wolf", "oas", "empirical")

LOG_2PI = math.log(2 * math.pi)
CHUNK_VALUES = 2**24
"""Numbers that a step of a computation holds at a time: 128 MB in float64."""

_ROUNDING = 1e-12
"""Share of a variance that float32 features, which repeat one another, leave unexplained."""


def about(means: Doubles, x: Doubles, y: Labels) -> Doubles:
    """Rows about the means of their classes, where what rounding leaves of a constant is 0."""
    residuals = x - means[y]
    residuals[np.abs(residuals) <= 1e-13 * np.abs(x).max(axis=0)] = 0
    return residuals


def check_counts(
    counts: Array, k: int, structure: Structure, estimator: Estimator, spare: int = 0
) -> None:
    """Refuses classes with too few images for a covariance, also after `spare` of them are gone."""
    # Ledoit and Wolf do not shrink the covariance of two images.
    free = {"ledoit_wolf": 2, "oas": 1, "empirical": k}[estimator] + spare
    c, total = int(counts.argmin()), int(counts.sum())
    needed = (free if structure == "full" else 1 + spare if structure == "diagonal" else spare) + 1
    what = f"for a {structure} covariance by {estimator!r} in {k} dimensions"
    if counts[c] < needed:
        raise ValueError(
            f"Class {c} has {counts[c]} images; {needed} are needed {what}. {remedy(estimator)}"
        )
    if structure == "tied" and total < free + len(counts):
        raise ValueError(
            f"There are {total} images; {free + len(counts)} are needed {what}, as each class "
            f"takes one for its mean. {remedy(estimator)}"
        )


def covariance(residuals: Doubles, estimator: Estimator, structure: Structure) -> Doubles:
    """(k, k), or of diagonal structure (k,), from rows about their means."""
    from sklearn.covariance import empirical_covariance, ledoit_wolf, oas

    if estimator == "empirical" and structure == "diagonal":
        return cast(Doubles, (residuals**2).mean(axis=0))
    if estimator == "empirical":
        S = empirical_covariance(residuals, assume_centered=True)
    else:
        shrunk = ledoit_wolf if estimator == "ledoit_wolf" else oas
        S, _ = shrunk(residuals, assume_centered=True)
    return cast(Doubles, S.diagonal() if structure == "diagonal" else S)


def whitening_of(S: Doubles) -> Doubles | None:
    """W with W S W^T = 1, (k, k) or of variances (1, k); `None` if S is singular."""
    from scipy.linalg import solve_triangular

    if S.ndim == 1:
        return 1 / np.sqrt(S)[None] if (S > 0).all() else None
    try:
        L = np.linalg.cholesky(S)
    except np.linalg.LinAlgError:
        return None
    # A pivot is the variance of a feature that those before it leave unexplained.
    if (L.diagonal() ** 2 <= _ROUNDING * S.diagonal()).any():
        return None
    return cast(Doubles, solve_triangular(L, np.eye(len(S)), lower=True))


def remedy(estimator: Estimator) -> str:
    first = "Use `estimator='ledoit_wolf'` or 'oas', " if estimator == "empirical" else "Use "
    return first + "fewer `components`, `structure='tied'` or 'diagonal', or more images."


def leave_one_out(
    residuals: Doubles, y: Labels, estimator: Estimator, structure: Structure
) -> Doubles:
    """Hardness of every row under the covariance of the others, which all share one.

    Let u be a row about the mean of its class, m the images of the class, n those of all, and A
    the scatter matrix, of which the covariance is S = (1 - s) A / n + s tr(A) / (n k), with the
    shrinkage s. Without the row, its class has a mean that lies m / (m - 1) u away from it, and
    the scatter is A - m / (m - 1) u u^T; s follows from the traces of that and of its square and,
    for Ledoit-Wolf, from the fourth moments. Sherman-Morrison does the rest.
    """
    n, k = residuals.shape
    U = residuals
    A = U.T @ U
    m = np.bincount(y)[y].astype(np.float64)
    away = m / (m - 1)
    norm = np.einsum("nk,nk->n", U, U)  # |u|^2
    through = np.einsum("nk,nk->n", U @ A, U)  # u^T A u
    trace = (A.trace() - away * norm) / (n - 1)
    square = (np.sum(A * A) - 2 * away * through + (away * norm) ** 2) / (n - 1) ** 2
    fourth = _fourth_moments(U, y) if estimator == "ledoit_wolf" else norm
    s = _shrinkage(estimator, n - 1, k, trace, square, fourth)
    a, b = ((1 - s) / (n - 1))[:, None], (s * trace / k)[:, None]
    if structure == "diagonal":
        variances = a * (A.diagonal() - away[:, None] * U**2) + b
        _check_left(variances, A.diagonal() / n)
        d = np.sum(U**2 / variances, axis=1) * away**2
        return cast(Doubles, (d + np.log(variances).sum(axis=1) + k * LOG_2PI) / 2)
    lam, Q = np.linalg.eigh(A)
    U = U @ Q
    H = np.empty(n)
    step = max(1, CHUNK_VALUES // k)
    for part in (slice(i, i + step) for i in range(0, n, step)):
        spectrum = a[part] * lam.clip(min=0) + b[part]
        d = np.sum(U[part] ** 2 / spectrum, axis=1)
        left = 1 - a[part, 0] * away[part] * d  # the share of det S that the row does not make up
        _check_left(left, 1.0)
        H[part] = away[part] ** 2 * d / left + np.log(spectrum).sum(axis=1) + np.log(left)
    return (H + k * LOG_2PI) / 2


def _check_left(left: Doubles, whole: Any) -> None:
    if not np.all(left > _ROUNDING * whole):
        raise ValueError(
            "No image can be left out: one of them alone keeps the covariance from being singular. "
            + remedy("empirical")
        )


def _fourth_moments(U: Doubles, y: Labels) -> Doubles:
    """For every row, the sum over the others of |x|^4, x being their rows about the new means."""
    norm = np.einsum("nk,nk->n", U, U)
    total = float(np.sum(norm**2))
    fourth = np.empty(len(U))
    for c in np.unique(y):
        of_class = y == c
        R, r = U[of_class], norm[of_class]
        m = len(R)
        # The others of the class move by v = u / (m - 1): |x + v|^2 = |x|^2 + 2 x.v + |v|^2.
        v, shift = R / (m - 1), r / (m - 1) ** 2
        moved = 4 * np.einsum("nk,nk->n", v @ (R.T @ R), v) + 4 * v @ (r @ R)
        moved += m * shift**2 + 2 * shift * r.sum()
        fourth[of_class] = total + moved - r**2 * (m / (m - 1)) ** 4
    return fourth


def _shrinkage(
    estimator: Estimator, n: int, k: int, trace: Doubles, square: Doubles, fourth: Doubles
) -> Doubles:
    """The weight of the identity, from the traces of S and S^2 and the sum of |x|^4."""
    if estimator == "empirical" or k == 1:
        return np.zeros_like(trace)
    spread = square - trace**2 / k  # |S - mu 1|^2
    with np.errstate(divide="ignore", invalid="ignore"):
        if estimator == "oas":
            s = (square + trace**2) / ((n + 1) * spread)
        else:
            s = (fourth / n - square) / n / spread
    return np.where(spread > 0, np.clip(s, 0, 1), 1.0)
