"""How recipes are tried, as Python and the command line have it; loads nothing heavy."""

from dataclasses import dataclass, field
from typing import Any, final

from synthaug._support import arguments
from synthaug._training.classifier_config import ClassifierConfig
from synthaug._training.training_config import TrainingConfig

TARGETS = ("random", "difficult", "selected")
"""What images of a recipe are drawn and kept."""
AUGMENTATIONS = ("affine", "randaugment", "trivialaugment", "cutmix", "mixup")
"""Augmentations of `evaluation` besides the standard one, which is a rival in any case."""


def _generator() -> TrainingConfig:
    return TrainingConfig(steps=3000, learning_rate=1e-3, decay_steps=1000, ema_decay=0.998)


@final
@dataclass(frozen=True, kw_only=True)
class ImproveConfig:
    """How recipes are tried.

        ImproveConfig(minutes=30, classifiers=ClassifierConfig(steps=1000, horizontal_flip=True))

    Raises:
        ValueError: For a value out of range.
    """

    minutes: float = 60.0
    """Time that the whole search may take, as it is estimated beforehand. Recipes that do not fit
    are not tried, and the report names them."""
    shares: tuple[float, ...] = (0.5, 0.3, 0.7)
    """Shares of synthetic images that are tried, the most promising one first."""
    targets: tuple[str, ...] = ("random", "difficult", "selected")
    """What images of each recipe are drawn and kept: "random" draws classes in their proportions,
    "difficult" more of classes that classifiers find hard, "selected" twice as many, of which the
    better half is kept. The first one is tried at all shares, the others at the first share."""
    augmentations: tuple[str, ...] = ("trivialaugment", "randaugment", "mixup", "cutmix")
    """Stronger augmentations of real images alone, which are rivals too."""
    images_per_round: float = 2.0
    """Synthetic images, per real training image, that every round draws."""
    rounds: int = 3
    """Rounds at most. From the second one on, classes with more errors get more images."""
    screening_seeds: int = 2
    """Classifiers that every recipe trains before the worse half goes."""
    final_seeds: int = 5
    """Classifiers of the last recipe and of its rivals, and of the confirmation on test images."""
    confidence: float = 0.95
    """Of the one-sided bounds that must lie above zero."""
    set_aside: float = 0.2
    """Share of the images that is set aside for choosing, and again for testing, where none are
    given."""
    generator: TrainingConfig = field(default_factory=_generator)
    """Training of the generator, if there is to be one."""
    channels: int = 32
    """Channels of its first level."""
    classifiers: ClassifierConfig = field(default_factory=ClassifierConfig)
    """Network and training of the classifiers; unused where you give your own."""
    adversarial: Any = None
    """An `evaluation.AdversarialConfig`: classifiers are trained under its attack, and their
    accuracy under attack decides. `None` means plain training and accuracy."""
    seed: int = 0
    """Of the splits, the generator and the plans."""

    def __post_init__(self) -> None:
        arguments.check_fields(self)
        arguments.check_positive(minutes=self.minutes, images_per_round=self.images_per_round)
        arguments.check_at_least(1, rounds=self.rounds, channels=self.channels)
        arguments.check_at_least(
            2,
            "A gain needs a spread.",
            screening_seeds=self.screening_seeds,
            final_seeds=self.final_seeds,
        )
        arguments.check_within("(0.5, 1)", confidence=self.confidence)
        arguments.check_within("(0, 0.5)", set_aside=self.set_aside)
        arguments.check_some("share", shares=self.shares)
        arguments.check_distinct(shares=self.shares)
        arguments.check_some("target", targets=self.targets)
        arguments.check_distinct(targets=self.targets, augmentations=self.augmentations)
        for target in self.targets:
            arguments.check_choice(TARGETS, targets=target)
        for name in self.augmentations:
            arguments.check_choice(AUGMENTATIONS, augmentations=name)
        for share in self.shares:
            arguments.check_within("(0, 1]", "0 is the rival in any case.", shares=share)
        if self.final_seeds < self.screening_seeds:
            raise ValueError(
                f"`final_seeds` must be at least `screening_seeds`={self.screening_seeds}, got "
                f"{self.final_seeds}."
            )
