"""How settings are compared, as Python and the command line have it; loads nothing heavy."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

from synthaug._training.classifier_config import Builder, ClassifierConfig


@final
@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """How settings are compared.

    Raises:
        ValueError: For an unknown way to select.
    """

    per_class: int = 100
    """Images of every class in the first stage."""
    guidance_per_class: int | None = None
    """The same in the second; by default as many."""
    select: Literal["cas", "frechet"] = "cas"
    """What the second stage chooses by."""
    model: str | Builder = ClassifierConfig.model
    """Classifier, as for `evaluate`."""
    steps: int = ClassifierConfig.steps
    """Optimiser steps of every classifier."""
    seeds: int | Sequence[int] = 3
    """Classifiers of each setting, as for `evaluate`."""
    horizontal_flip: bool = ClassifierConfig.horizontal_flip
    """Mirror half of the classifiers' training images."""
    k: int = 5
    """Neighbours of precision and recall."""
    force: bool = False
    """Take the Fréchet distance of fewer images than twice the features."""
    allow_overlap: bool = False
    """Go on if the splits share images."""
    batch_size: int = 64
    """Images per batch while drawing; does not change them."""
    seed: int = 0
    """Of the plans and of the choice of real images."""
    device: str | None = None
    """Of the classifiers; by default the GPU if there is one."""

    def __post_init__(self) -> None:
        if self.select not in ("cas", "frechet"):
            raise ValueError(f"`select` must be 'cas' or 'frechet', got {self.select!r}.")

    @property
    def classifiers(self) -> ClassifierConfig:
        """How classifiers are trained."""
        names = ("model", "steps", "horizontal_flip", "device")
        return ClassifierConfig(**{name: getattr(self, name) for name in names})

    def images_per_class(self, stage: str) -> int:
        """Images of every class in the stage "coarse" or "fine"."""
        return (self.guidance_per_class if stage == "fine" else None) or self.per_class
