"""How restorers are trained, for Python and the command line alike."""

from dataclasses import dataclass
from typing import final

from synthaug._support.arguments import check_at_least
from synthaug._training.network_config import NetworkConfig


@final
@dataclass(frozen=True, kw_only=True)
class RestorerConfig(NetworkConfig):
    """A network that learns to restore, and where images can be generated from."""

    color_components: int = 1
    """Gaussians in the mixture of colors that generation starts from, for a degradation whose
    last level leaves one color."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, color_components=self.color_components)
