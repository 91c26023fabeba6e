"""How the networks that steer are trained, for Python and the command line alike."""

from dataclasses import dataclass
from typing import final

from synthaug._support.arguments import check_at_least, check_fields


@final
@dataclass(frozen=True, kw_only=True)
class GuideConfig:
    """The two networks that steer, and what they learn from.

    Raises:
        ValueError: For a value out of range.
    """

    num_synthetic: int | None = None
    """Synthetic images to draw; as many as there are real ones, but at most 5,000, by default."""
    embedding_dim: int = 64
    """Features of each network."""
    noise_levels: int = 10
    """Ranges of timesteps that have Gaussians of their own."""
    horizontal_flip: bool = False
    """Mirror half of the training images."""

    def __post_init__(self) -> None:
        check_fields(self)
        check_at_least(1, num_synthetic=self.num_synthetic)
        check_at_least(1, embedding_dim=self.embedding_dim, noise_levels=self.noise_levels)
