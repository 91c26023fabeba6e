"""Where generation starts if the last level leaves one colour: a Gaussian mixture of colours."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from synthaug._noise import Streams
from synthaug._types import JSON


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class ColourMixture:
    """Gaussians with full covariance, fitted to one colour per training image, in [-1, 1]."""

    weights: NDArray[np.float64]
    """(k,), of sum 1."""
    means: NDArray[np.float64]
    """(k, C)."""
    covariances: NDArray[np.float64]
    """(k, C, C)."""

    @classmethod
    def fit(cls, colours: NDArray[np.float64], components: int, *, seed: int) -> "ColourMixture":
        """scikit-learn's expectation maximisation.

        Args:
            colours: (n, C).
            components: Number of Gaussians; the paper takes 1.
            seed: Of its initialisation.

        Raises:
            ValueError: If there are fewer images than components.
        """
        from sklearn.mixture import GaussianMixture

        if not 1 <= components <= len(colours):
            raise ValueError(
                f"`colour_components` must be in [1, {len(colours)}], the number of images; got "
                f"{components}."
            )
        found = GaussianMixture(components, covariance_type="full", random_state=seed).fit(colours)
        return cls(weights=found.weights_, means=found.means_, covariances=found.covariances_)

    def sample(self, generators: Streams) -> Tensor:
        """One colour per stream, float32 (n, C)."""
        factors = np.linalg.cholesky(self.covariances)
        bounds = np.cumsum(self.weights)[:-1]
        colours = []
        for generator in generators:
            draw = torch.rand((), dtype=torch.float64, generator=generator, device="cpu")
            k = int(np.searchsorted(bounds, float(draw), side="right"))
            size = self.means.shape[1]
            z = torch.randn(size, dtype=torch.float64, generator=generator, device="cpu")
            colours.append(torch.from_numpy(self.means[k] + factors[k] @ z.numpy()))
        return torch.stack(colours).float()

    def config(self) -> dict[str, JSON]:
        """As JSON."""
        return {name: values.tolist() for name, values in vars(self).items()}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "ColourMixture":
        """What `config` described."""
        return cls(**{name: np.asarray(value, np.float64) for name, value in config.items()})
