"""Configurations of new networks, with the defaults that all our trainings share."""

from dataclasses import dataclass

from synthaug._support.arguments import check_at_least, check_choice, check_fields, check_within

PREDICTION_TYPES = ("v_prediction", "epsilon", "sample")
FLOW = "flow"


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """A network for small images, and how it sees them.

    Raises:
        ValueError: For a value out of range.
    """

    channels: int = 32
    """Width of the first level; the next ones have 2 and 4 times as many."""
    num_layers: int = 1
    """Residual blocks per level."""
    horizontal_flip: bool = False
    """Mirror half of the training images."""

    def __post_init__(self) -> None:
        check_fields(self)
        check_at_least(1, channels=self.channels, num_layers=self.num_layers)


@dataclass(frozen=True, kw_only=True)
class DenoiserConfig(NetworkConfig):
    """A network that learns to denoise."""

    prediction_type: str = "v_prediction"
    """"v_prediction", "epsilon" or "sample"; of a `ClassConditional` also "flow"."""

    def __post_init__(self) -> None:
        super().__post_init__()
        known = (*PREDICTION_TYPES, FLOW) if self.may_predict_flow else PREDICTION_TYPES
        check_choice(known, prediction_type=self.prediction_type)

    @property
    def may_predict_flow(self) -> bool:
        """Whether such a network may learn the flow."""
        return False


@dataclass(frozen=True, kw_only=True)
class LabeledConfig(DenoiserConfig):
    """A network that learns to denoise, and is told the class of an image."""

    label_dropout: float = 0.1
    """Probability of the null label, in [0, 1). At 0, and without images that have no label, the
    model has no unconditional branch, so it cannot be guided."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_within("[0, 1)", label_dropout=self.label_dropout)

    @property
    def may_predict_flow(self) -> bool:
        """Yes: nothing but the sampler's loop asks for what it predicts."""
        return True
