"""How settings are compared, as Python and the command line have it; loads nothing heavy."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Literal, final

from synthaug._support.arguments import check_at_least, check_fields, check_type, check_whole
from synthaug._training.classifier_config import ClassifierConfig


@final
@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """How settings are compared.

        SweepConfig(per_class=200, classifiers=ClassifierConfig(steps=2000, horizontal_flip=True))

    Raises:
        TypeError: If `classifiers` is something else.
        ValueError: For a value out of range, or an unknown way to select.
    """

    per_class: int = 100
    """Images of every class in the first stage."""
    guidance_per_class: int | None = None
    """The same in the second; by default as many."""
    select: Literal["cas", "frechet"] = "cas"
    """What the second stage chooses by."""
    classifiers: ClassifierConfig = field(default_factory=ClassifierConfig)
    """Network and training of the classifiers."""
    seeds: int | Sequence[int] = 3
    """Classifiers of each setting, as for `evaluate`."""
    k: int = 5
    """Neighbors of precision and recall."""
    force: bool = False
    """Take the Fréchet distance of fewer images than twice the features."""
    allow_overlap: bool = False
    """Go on if the splits share images."""
    batch_size: int = 64
    """Images per batch while drawing; does not change them."""
    seed: int = 0
    """Of the plans and of the choice of real images."""

    def __post_init__(self) -> None:
        check_fields(self)
        check_type(ClassifierConfig, "a ClassifierConfig", classifiers=self.classifiers)
        sizes = {"per_class": self.per_class, "guidance_per_class": self.guidance_per_class}
        check_at_least(1, **sizes, k=self.k, batch_size=self.batch_size)
        if isinstance(self.seeds, Real):
            check_whole(1, seeds=self.seeds)
        if self.select not in ("cas", "frechet"):
            raise ValueError(f"`select` must be 'cas' or 'frechet', got {self.select!r}.")

    def images_per_class(self, stage: str) -> int:
        """Images of every class in the stage "coarse" or "fine"."""
        return (self.guidance_per_class if stage == "fine" else None) or self.per_class
