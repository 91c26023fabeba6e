"""How rare an image is among real ones: hardness, mean neighbour distance, local outlier factor.

Sehwag et al. 2022, "Generating High Fidelity Data from Low-density Regions using Diffusion Models".
Hardness is the negative log-likelihood of an image's features under a Gaussian of its class; the
other two compare with the nearest real images. All are larger where real images are rare.

    gaussians = density.ClassGaussians.fit(features, labels)
    real = gaussians.leave_one_out(features, labels)    # of the images that were fitted
    synthetic = gaussians.hardness(drawn, drawn_labels)

Notation (code -> paper): `features` -> f(x) in R^k; `hardness(f, y)` -> H(x, y); `means` -> mu_y;
`contrastive_loss` -> L_g1, and with real and synthetic as the two classes L_g2; `temperature` ->
tau.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, cast, final

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from synthaug._types import Features, Labels

Structure = Literal["full", "tied", "diagonal"]
Estimator = Literal["ledoit_wolf", "oas", "empirical"]
STRUCTURES: tuple[Structure, ...] = ("full", "tied", "diagonal")
ESTIMATORS: tuple[Estimator, ...] = ("ledoit_wolf", "oas", "empirical")

_LOG_2PI = math.log(2 * math.pi)
_CHUNK_VALUES = 2**24
"""Numbers that a step of a computation holds at a time: 128 MB in float64."""

_ROUNDING = 1e-12
"""Share of a variance that float32 features, which repeat one another, leave unexplained."""

Vectors = TypeVar("Vectors", NDArray[Any], Tensor)
Doubles = NDArray[np.float64]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class ClassGaussians:
    """One Gaussian per class, fitted to the features of real images; see `fit`.

    C classes, k dimensions: those of the features, or of their principal components.
    """

    means: Tensor
    """(C, k)."""
    whitening: Tensor
    """W with W S W^T = 1, S the covariance, its inverse Cholesky factor: (C, k, k), for tied
    covariances (1, k, k), for diagonal ones (C, 1, k)."""
    log_determinants: Tensor
    """ln det S, (C,)."""
    counts: Tensor
    """Images that each class was fitted to, int64 (C,)."""
    structure: Structure
    estimator: Estimator
    centre: Tensor | None = None
    """Mean of all features, (d,), if they are projected."""
    components: Tensor | None = None
    """Principal components, (k, d), if they are projected."""

    @classmethod
    def fit(
        cls,
        features: Features,
        labels: Labels,
        num_classes: int | None = None,
        *,
        structure: Structure = "full",
        estimator: Estimator = "ledoit_wolf",
        components: int | None = None,
    ) -> "ClassGaussians":
        """Fits means and covariances in float64, with the estimators of scikit-learn.

        Args:
            features: Floating point (n, d), of real images.
            labels: Class of each, int (n,).
            num_classes: C; one more than the largest label by default.
            structure: "full" has a covariance per class, "tied" one for all classes, about their
                own means, and "diagonal" the variances alone.
            estimator: "ledoit_wolf" and "oas" shrink towards a multiple of the identity, and need
                three and two images per class; "empirical" is the maximum likelihood, divided by n.
            components: Projects the features on so many principal components of all of them first.
                Hardness is then that of the projection.

        Raises:
            ValueError: For arguments that do not fit together, a class with too few images, or a
                covariance that is singular.
        """
        for name, value, known in (
            ("structure", structure, STRUCTURES),
            ("estimator", estimator, ESTIMATORS),
        ):
            if value not in known:
                raise ValueError(f"`{name}` must be one of {', '.join(known)}; got {value!r}.")
        x, y = _checked(features, labels)
        C = int(y.max()) + 1 if num_classes is None else num_classes
        if y.max() >= C:
            raise ValueError(f"`labels` holds {y.max()}, but `num_classes` is {C}.")
        centre = axes = None
        if components is not None:
            if not 1 <= components <= min(x.shape):
                raise ValueError(
                    f"`components` must be from 1 to {min(x.shape)}, the lesser of images and "
                    f"features; got {components}."
                )
            from sklearn.decomposition import PCA

            pca = PCA(components, random_state=0).fit(x)
            centre, axes = pca.mean_, pca.components_
            x = (x - centre) @ axes.T
        k = x.shape[1]
        counts = np.bincount(y, minlength=C)
        _check_counts(counts, k, structure, estimator)
        means = np.stack([x[y == c].mean(axis=0) for c in range(C)])
        residuals = _about(means, x, y)
        groups = [residuals] if structure == "tied" else [residuals[y == c] for c in range(C)]
        whitening, logs = [], []
        for c, group in enumerate(groups):
            S = _covariance(group, estimator, structure)
            whose = "all classes" if structure == "tied" else f"class {c}"
            L = np.sqrt(S) if S.ndim == 1 else _cholesky(S)
            if L is None or not (L if S.ndim == 1 else L.diagonal()).min() > 0:
                raise ValueError(
                    f"The covariance of {whose} is singular: features are constant, or follow from "
                    f"one another. {_remedy(estimator)}"
                )
            if S.ndim == 1:
                whitening.append(1 / L[None])
                logs.append(2 * np.log(L).sum())
            else:
                from scipy.linalg import solve_triangular

                whitening.append(solve_triangular(L, np.eye(k), lower=True))
                logs.append(2 * np.log(L.diagonal()).sum())

        def tensor(array: NDArray[Any]) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array))

        return cls(
            means=tensor(means),
            whitening=tensor(np.stack(whitening)),
            log_determinants=tensor(np.array(logs)).expand(C).clone(),
            counts=tensor(counts.astype(np.int64)),
            structure=structure,
            estimator=estimator,
            centre=None if centre is None else tensor(centre),
            components=None if axes is None else tensor(axes),
        )

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.means)

    @property
    def num_features(self) -> int:
        """d, the length of the feature vectors."""
        return int((self.means if self.components is None else self.components).shape[1])

    def hardness(self, features: Vectors, labels: Any) -> Vectors:
        """Negative log-likelihood of each row under the Gaussian of its class, in nats.

        H(x, y) = (|W_y (f(x) - mu_y)|^2 + ln det S_y + k ln 2 pi) / 2 (methods of the paper, first
        equation); minus `scipy.stats.multivariate_normal.logpdf`.

        Args:
            features: (n, d), an array or a tensor.
            labels: int (n,), of the same kind.

        Returns:
            (n,): float64 for an array; for a tensor its device, differentiable, float64 if it is
            float64 and else float32.
        """

        def own(x: Tensor, g: "ClassGaussians") -> Tensor:
            y = torch.as_tensor(labels, device=x.device)
            g._check_labels(y, len(x))
            H = x.new_zeros(len(x))
            for c in y.unique().tolist():
                rows = torch.nonzero(y == c)[:, 0]
                H = H.index_put((rows,), g._hardness(x[rows], slice(c, c + 1))[:, 0])
            return H

        return self._apply(own, features)

    def all_hardness(self, features: Vectors) -> Vectors:
        """As `hardness`, under the Gaussian of every class: (n, C)."""

        def every(x: Tensor, g: "ClassGaussians") -> Tensor:
            step = max(1, _CHUNK_VALUES // max(1, x.numel()))
            starts = range(0, g.num_classes, step)
            return torch.cat([g._hardness(x, slice(c, c + step)) for c in starts], dim=1)

        return self._apply(every, features)

    def leave_one_out(self, features: Features, labels: Labels) -> Doubles:
        """Hardness of the very images that were fitted, each under a fit without it.

        In-sample hardness is too low: any other image looks harder. What this returns compares
        with the hardness of images that were not fitted. It equals a refit without each image, for
        every structure and estimator, shrinkage included, by rank-one updates; only principal
        components, which know no labels, stay those of all images.

        Args:
            features: (n, d), those that were given to `fit`.
            labels: int (n,), likewise.

        Returns:
            float64 (n,).

        Raises:
            ValueError: For other features than those fitted, or a class that cannot miss an image.
        """
        x, y = _checked(features, labels)
        self._check_labels(torch.from_numpy(y), len(x))
        if x.shape[1] != self.num_features:
            raise ValueError(f"`features` has shape {x.shape}, expected (n, {self.num_features}).")
        here = self.to("cpu", torch.float64)
        x = cast(Doubles, here._projected(torch.from_numpy(x)).numpy())
        counts, means = here.counts.numpy(), here.means.numpy()
        same = np.array_equal(np.bincount(y, minlength=len(counts)), counts)
        if not same or not np.allclose(
            np.stack([x[y == c].mean(axis=0) for c in range(len(counts))]),
            means,
            atol=1e-5 * float(np.abs(x).max()),
        ):
            raise ValueError(
                "`features` and `labels` are not those that were fitted, which leave-one-out "
                "needs. Use `hardness` for other images."
            )
        try:
            _check_counts(counts, x.shape[1], self.structure, self.estimator, spare=1)
        except ValueError as error:
            raise ValueError(f"No image can be left out. {error}") from None
        residuals = _about(means, x, y)
        if self.structure == "tied":
            return _leave_one_out(residuals, y, self.estimator, self.structure)
        H = np.empty(len(x))
        for c in range(len(counts)):
            own = y == c
            H[own] = _leave_one_out(residuals[own], y[own], self.estimator, self.structure)
        return H

    def to(
        self, device: str | torch.device | None = None, dtype: torch.dtype | None = None
    ) -> "ClassGaussians":
        """The same on a device, in float32 or float64, so that no call has to move it there."""
        moved: dict[str, Any] = {
            name: value.to(device, dtype if value.is_floating_point() else None)
            for name, value in self._tensors().items()
        }
        return replace(self, **moved)

    def state(self) -> dict[str, Tensor]:
        """Everything as tensors, for a safetensors file; see `from_state`."""
        kind = [STRUCTURES.index(self.structure), ESTIMATORS.index(self.estimator)]
        return {**self._tensors(), "kind": torch.tensor(kind)}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> "ClassGaussians":
        """What `state` returned, again.

        Raises:
            ValueError: If it is something else.
        """
        tensors = dict(state)
        try:
            structure, estimator = tensors.pop("kind").tolist()
            found = cls(
                structure=STRUCTURES[structure],
                estimator=ESTIMATORS[estimator],
                **cast(Any, tensors),
            )
            C, k = found.means.shape
            first = 1 if found.structure == "tied" else C
            second = 1 if found.structure == "diagonal" else k
            shapes = [(first, second, k), (C,), (C,)]
            parts = [found.whitening, found.log_determinants, found.counts]
            if [tuple(part.shape) for part in parts] != shapes:
                raise ValueError("shapes disagree")
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ValueError(f"These are not the tensors of `ClassGaussians` ({error}).") from error
        return found

    def _tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def _apply(
        self, compute: Callable[[Tensor, "ClassGaussians"], Tensor], features: Vectors
    ) -> Vectors:
        """Runs `compute` on projected features in their own precision and place."""
        if isinstance(features, Tensor):
            dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
            x = features.to(dtype)
        else:
            x = torch.from_numpy(np.asarray(features, np.float64))
        if x.ndim != 2 or x.shape[1] != self.num_features:
            raise ValueError(
                f"`features` has shape {tuple(x.shape)}, expected (n, {self.num_features})."
            )
        with torch.autocast(x.device.type, enabled=False):  # squares of large numbers
            here = self.to(x.device, x.dtype)
            result = compute(here._projected(x), here)
        return cast(Any, result if isinstance(features, Tensor) else result.numpy())

    def _projected(self, x: Tensor) -> Tensor:
        if self.components is None or self.centre is None:
            return x
        return (x - self.centre) @ self.components.T

    def _hardness(self, x: Tensor, classes: slice) -> Tensor:
        """(n, k) to (n, c): under the Gaussians of some of the classes."""
        away = x - self.means[classes, None]  # (c, n, k)
        W = self.whitening if self.structure == "tied" else self.whitening[classes]
        white = away * W if self.structure == "diagonal" else away @ W.mT
        constant = self.log_determinants[classes, None] + x.shape[1] * _LOG_2PI
        return ((white.square().sum(-1) + constant) / 2).T

    def _check_labels(self, y: Tensor, n: int) -> None:
        if y.shape != (n,) or y.is_floating_point():
            raise ValueError(
                f"`labels` must be integers of shape ({n},), got {y.dtype} {tuple(y.shape)}."
            )
        if n and not 0 <= int(y.min()) <= int(y.max()) < self.num_classes:
            raise ValueError(
                f"`labels` must be from 0 to {self.num_classes - 1}, got {int(y.min())} to "
                f"{int(y.max())}."
            )


def contrastive_loss(
    hardness: Float[Tensor, "n c"], labels: Tensor, temperature: float = 1.0
) -> Float[Tensor, " n"]:
    """Minus the logarithm of the share of a class among all classes' likelihoods.

    L_g1(x, y) = -log(exp(-H(x, y) / tau) / sum_c exp(-H(x, c) / tau)) = -log p_y. Its gradient by
    H(x, y) is (1 - p_y) / tau, and by another H(x, c) it is -p_c / tau, so an ascent makes an image
    less likely under its own class and more likely under others. It vanishes as p_y does. For
    L_g2, give the hardness under the Gaussians of synthetic and real images, with the label of the
    synthetic ones. The equation is a reconstruction: the printed one could not be consulted.

    Args:
        hardness: (n, C), of every class; of any size without overflow.
        labels: int64 (n,).
        temperature: tau, positive; the larger, the softer.

    Returns:
        (n,), not averaged, so that the gradient of an image does not depend on its batch.

    Raises:
        ValueError: If `temperature` is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"`temperature` must be positive, got {temperature}.")
    least = hardness.detach().amin(1, keepdim=True)  # the loss depends on differences only
    return F.cross_entropy((least - hardness) / temperature, labels, reduction="none")


def _checked(features: Any, labels: Any) -> tuple[Doubles, Labels]:
    """float64 (n, d) and int64 (n,), finite and of one length."""
    x, y = np.asarray(features), np.asarray(labels)
    if x.ndim != 2 or 0 in x.shape or not np.issubdtype(x.dtype, np.floating):
        raise ValueError(
            f"`features` must be floating point of shape (n, d), got {x.dtype} {x.shape}."
        )
    if y.shape != (len(x),) or not np.issubdtype(y.dtype, np.integer):
        raise ValueError(
            f"`labels` must be integers of shape ({len(x)},), got {y.dtype} {y.shape}."
        )
    if y.min() < 0:
        raise ValueError(f"`labels` must be at least 0, got {y.min()}.")
    x = x.astype(np.float64)
    if not np.isfinite(x).all():
        bad = int(np.flatnonzero(~np.isfinite(x).all(axis=1))[0])
        raise ValueError(f"`features` is not finite in row {bad}. Look at the extractor.")
    return x, y.astype(np.int64)


def _about(means: Doubles, x: Doubles, y: Labels) -> Doubles:
    """Rows about the means of their classes, where what rounding leaves of a constant is 0."""
    residuals = x - means[y]
    residuals[np.abs(residuals) <= 1e-13 * np.abs(x).max(axis=0)] = 0
    return residuals


def _remedy(estimator: Estimator) -> str:
    first = 'Use estimator="ledoit_wolf" or "oas", ' if estimator == "empirical" else "Use "
    return first + 'fewer `components`, structure="tied" or "diagonal", or more images.'


def _check_counts(
    counts: NDArray[Any], k: int, structure: Structure, estimator: Estimator, spare: int = 0
) -> None:
    """Refuses classes with too few images for a covariance, also after `spare` of them are gone."""
    # Ledoit and Wolf do not shrink the covariance of two images.
    free = {"ledoit_wolf": 2, "oas": 1, "empirical": k}[estimator] + spare
    c, total = int(counts.argmin()), int(counts.sum())
    needed = (free if structure == "full" else 1 + spare if structure == "diagonal" else spare) + 1
    what = f"for a {structure} covariance by {estimator!r} in {k} dimensions"
    if counts[c] < needed:
        raise ValueError(
            f"Class {c} has {counts[c]} images; {needed} are needed {what}. {_remedy(estimator)}"
        )
    if structure == "tied" and total < free + len(counts):
        raise ValueError(
            f"There are {total} images; {free + len(counts)} are needed {what}, as each class "
            f"takes one for its mean. {_remedy(estimator)}"
        )


def _covariance(residuals: Doubles, estimator: Estimator, structure: Structure) -> Doubles:
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


def _cholesky(S: Doubles) -> Doubles | None:
    """The lower factor; `None` if the matrix is singular within rounding."""
    try:
        L = np.linalg.cholesky(S)
    except np.linalg.LinAlgError:
        return None
    # A pivot is the variance of a feature that those before it leave unexplained.
    return None if (L.diagonal() ** 2 <= _ROUNDING * S.diagonal()).any() else cast(Doubles, L)


def _leave_one_out(
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
        return cast(Doubles, (d + np.log(variances).sum(axis=1) + k * _LOG_2PI) / 2)
    lam, Q = np.linalg.eigh(A)
    U = U @ Q
    H = np.empty(n)
    step = max(1, _CHUNK_VALUES // k)
    for part in (slice(i, i + step) for i in range(0, n, step)):
        spectrum = a[part] * lam.clip(min=0) + b[part]
        d = np.sum(U[part] ** 2 / spectrum, axis=1)
        left = 1 - a[part, 0] * away[part] * d  # the share of det S that the row does not make up
        _check_left(left, 1.0)
        H[part] = away[part] ** 2 * d / left + np.log(spectrum).sum(axis=1) + np.log(left)
    return (H + k * _LOG_2PI) / 2


def _check_left(left: Doubles, whole: Any) -> None:
    if not np.all(left > _ROUNDING * whole):
        raise ValueError(
            "No image can be left out: one of them alone keeps the covariance from being singular. "
            + _remedy("empirical")
        )


def _fourth_moments(U: Doubles, y: Labels) -> Doubles:
    """For every row, the sum over the others of |x|^4, x being their rows about the new means."""
    norm = np.einsum("nk,nk->n", U, U)
    total = float(np.sum(norm**2))
    fourth = np.empty(len(U))
    for c in np.unique(y):
        own = y == c
        R, r = U[own], norm[own]
        m = len(R)
        # The others of the class move by v = u / (m - 1): |x + v|^2 = |x|^2 + 2 x.v + |v|^2.
        v, shift = R / (m - 1), r / (m - 1) ** 2
        moved = 4 * np.einsum("nk,nk->n", v @ (R.T @ R), v) + 4 * v @ (r @ R)
        moved += m * shift**2 + 2 * shift * r.sum()
        fourth[own] = total + moved - r**2 * (m / (m - 1)) ** 4
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
