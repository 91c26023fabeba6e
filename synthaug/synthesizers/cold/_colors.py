"""Where generation starts if the last level leaves one color: a Gaussian mixture of colors."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from synthaug._noise import Streams
from synthaug._types import JSON, Doubles


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class ColorMixture:
    """Gaussians with full covariance, fitted to one color per training image, in [-1, 1]."""

    weights: Doubles
    """(k,), of sum 1."""
    means: Doubles
    """(k, C)."""
    covariances: Doubles
    """(k, C, C)."""

    @classmethod
    def fit(cls, colors: Doubles, components: int, *, seed: int) -> "ColorMixture":
        """scikit-learn's expectation maximization.

        Args:
            colors: (n, C).
            components: Number of Gaussians; the paper takes 1.
            seed: Seed of its initialization.

        Raises:
            ValueError: If there are fewer images than components.
        """
        from sklearn.mixture import GaussianMixture

        if not 1 <= components <= len(colors):
            raise ValueError(
                f"`color_components` must be in [1, {len(colors)}], the number of images; got "
                f"{components}."
            )
        found = GaussianMixture(components, covariance_type="full", random_state=seed).fit(colors)
        return cls(weights=found.weights_, means=found.means_, covariances=found.covariances_)

    def sample(self, generators: Streams) -> Tensor:
        """One color per stream, float32 (n, C)."""
        factors = np.linalg.cholesky(self.covariances)
        bounds = np.cumsum(self.weights)[:-1]
        colors = []
        for generator in generators:
            draw = torch.rand((), dtype=torch.float64, generator=generator, device="cpu")
            k = int(np.searchsorted(bounds, float(draw), side="right"))
            size = self.means.shape[1]
            z = torch.randn(size, dtype=torch.float64, generator=generator, device="cpu")
            colors.append(torch.from_numpy(self.means[k] + factors[k] @ z.numpy()))
        return torch.stack(colors).float()

    def config(self) -> dict[str, JSON]:
        """Returns the mixture as JSON."""
        return {name: values.tolist() for name, values in vars(self).items()}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "ColorMixture":
        """Builds what `config` described."""
        return cls(**{name: np.asarray(value, np.float64) for name, value in config.items()})
