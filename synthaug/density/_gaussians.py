"""Gaussians of classes in a feature space, and how unlikely images are under them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast, final

import numpy as np
import torch
from torch import Tensor

from synthaug._neighbors import checked_features
from synthaug._support.arguments import check_at_least, check_between, check_choice, check_whole
from synthaug._support.torch_state import lasting_tensors
from synthaug._types import Array, Doubles, Features, Labels
from synthaug.density._covariance import (
    CHUNK_VALUES,
    ESTIMATORS,
    LOG_2PI,
    STRUCTURES,
    Estimator,
    Structure,
    about,
    check_counts,
    covariance,
    leave_one_out,
    remedy,
    whitening_of,
)

Vectors = TypeVar("Vectors", Array, Tensor)


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
    center: Tensor | None = None
    """Mean of all features, (d,), if they are projected."""
    components: Tensor | None = None
    """Principal components, (k, d), if they are projected."""

    @classmethod
    @lasting_tensors()
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
        check_choice(STRUCTURES, structure=structure)
        check_choice(ESTIMATORS, estimator=estimator)
        check_whole(1, num_classes=num_classes)
        x, y = _checked(features, labels)
        C = int(y.max()) + 1 if num_classes is None else num_classes
        if y.max() >= C:
            raise ValueError(f"`labels` holds {y.max()}, but `num_classes` is {C}.")
        center = axes = None
        if components is not None:
            center, axes = _principal(x, components)
            x = (x - center) @ axes.T
        counts = np.bincount(y, minlength=C)
        check_counts(counts, x.shape[1], structure, estimator)
        means = np.stack([x[y == c].mean(axis=0) for c in range(C)])
        residuals = about(means, x, y)
        groups = {f"class {c}": residuals[y == c] for c in range(C)}
        if structure == "tied":
            groups = {"all classes": residuals}
        whitenings = []
        for name, group in groups.items():
            W = whitening_of(covariance(group, estimator, structure))
            if W is None:
                raise ValueError(
                    f"The covariance of {name} is singular: features are constant, or follow from "
                    f"one another. {remedy(estimator)}"
                )
            whitenings.append(W)
        W = np.stack(whitenings)
        logs = -2 * np.log(W[:, 0] if structure == "diagonal" else W.diagonal(axis1=1, axis2=2))
        return cls(
            means=_tensor(means),
            whitening=_tensor(W),
            log_determinants=_tensor(logs.sum(axis=1)).expand(C).clone(),
            counts=_tensor(counts.astype(np.int64)),
            structure=structure,
            estimator=estimator,
            center=None if center is None else _tensor(center),
            components=None if axes is None else _tensor(axes),
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

        def of_label(x: Tensor, g: "ClassGaussians") -> Tensor:
            y = labels if isinstance(labels, Tensor) else torch.from_numpy(np.asarray(labels))
            y = y.to(x.device)
            g._check_labels(y, len(x))
            H = x.new_zeros(len(x))
            for c in y.unique().tolist():
                rows = torch.nonzero(y == c)[:, 0]
                H = H.index_put((rows,), g._hardness(x[rows], slice(c, c + 1))[:, 0])
            return H

        return self._apply(of_label, features)

    def all_hardness(self, features: Vectors) -> Vectors:
        """Returns the `hardness` under the Gaussian of every class: (n, C)."""

        def of_every_class(x: Tensor, g: "ClassGaussians") -> Tensor:
            step = max(1, CHUNK_VALUES // max(1, x.numel()))
            starts = range(0, g.num_classes, step)
            return torch.cat([g._hardness(x, slice(c, c + step)) for c in starts], dim=1)

        return self._apply(of_every_class, features)

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
        self._check_width(x)
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
            check_counts(counts, x.shape[1], self.structure, self.estimator, spare=1)
        except ValueError as error:
            raise ValueError(f"No image can be left out. {error}") from None
        residuals = about(means, x, y)
        if self.structure == "tied":
            return leave_one_out(residuals, y, self.estimator, self.structure)
        H = np.empty(len(x))
        for c in range(len(counts)):
            rows = y == c
            H[rows] = leave_one_out(residuals[rows], y[rows], self.estimator, self.structure)
        return H

    @lasting_tensors()
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
        return {**self._tensors(), "kind": torch.tensor(kind, dtype=torch.int64, device="cpu")}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> "ClassGaussians":
        """Rebuilds the object from what `state` returned.

        Raises:
            ValueError: If it is something else.
        """
        tensors = dict(state)
        try:
            structure, estimator = tensors.pop("kind").tolist()
            gaussians = cls(
                structure=STRUCTURES[structure],
                estimator=ESTIMATORS[estimator],
                **cast(Any, tensors),
            )
            C, k = gaussians.means.shape
            first = 1 if gaussians.structure == "tied" else C
            second = 1 if gaussians.structure == "diagonal" else k
            shapes = [(first, second, k), (C,), (C,)]
            parts = [gaussians.whitening, gaussians.log_determinants, gaussians.counts]
            if [tuple(part.shape) for part in parts] != shapes:
                raise ValueError("shapes disagree")
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ValueError(f"These are not the tensors of `ClassGaussians` ({error}).") from error
        return gaussians

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
        self._check_width(x)
        with torch.autocast(x.device.type, enabled=False):  # squares of large numbers
            here = self.to(x.device, x.dtype)
            result = compute(here._projected(x), here)
        return cast(Any, result if isinstance(features, Tensor) else result.numpy())

    def _projected(self, x: Tensor) -> Tensor:
        if self.components is None or self.center is None:
            return x
        return (x - self.center) @ self.components.T

    def _hardness(self, x: Tensor, classes: slice) -> Tensor:
        """(n, k) to (n, c): under the Gaussians of some of the classes."""
        away = x - self.means[classes, None]  # (c, n, k)
        W = self.whitening if self.structure == "tied" else self.whitening[classes]
        white = away * W if self.structure == "diagonal" else away @ W.mT
        constant = self.log_determinants[classes, None] + x.shape[1] * LOG_2PI
        return ((white.square().sum(-1) + constant) / 2).T

    def _check_width(self, x: Doubles | Tensor) -> None:
        if x.ndim != 2 or x.shape[1] != self.num_features:
            raise ValueError(
                f"`features` has shape {tuple(x.shape)}, expected (n, {self.num_features})."
            )

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


def _tensor(array: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def _principal(x: Doubles, components: int) -> tuple[Doubles, Doubles]:
    """The mean of all features, (d,), and their principal components, (components, d)."""
    from sklearn.decomposition import PCA

    check_whole(0, components=components)
    check_between(1, min(x.shape), ", the lesser of images and features", components=components)
    pca = PCA(components, random_state=0).fit(x)
    return pca.mean_, pca.components_


def _checked(features: Any, labels: Any) -> tuple[Doubles, Labels]:
    """float64 (n, d) and int64 (n,), finite and of one length."""
    x, y = checked_features(features, "features", np.float64), np.asarray(labels)
    if y.shape != (len(x),) or not np.issubdtype(y.dtype, np.integer):
        raise ValueError(
            f"`labels` must be integers of shape ({len(x)},), got {y.dtype} {y.shape}."
        )
    check_at_least(0, labels=y.min())
    return x, y.astype(np.int64)
