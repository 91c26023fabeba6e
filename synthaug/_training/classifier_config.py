"""How classifiers are trained, as Python and the command line have it; loads nothing heavy."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from synthaug._support import arguments
from synthaug._support.precision import Precision, check_precision

Builder = Callable[[int, tuple[int, int, int]], Any]
"""(num_classes, image_shape (C, H, W)) => module: images in [-1, 1] => logits."""


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """Training of classifiers.

    In Python `model` may be a function of (num_classes, image_shape) that returns a module: images
    float (n, C, H, W) in [-1, 1] => logits.

    Args:
        model: small-cnn, resnet20, resnet18 and all other torchvision classifiers, or timm:NAME.
        steps: Optimizer steps of every classifier.
        batch_size: Images per step.
        learning_rate: Peak learning rate of SGD with Nesterov's momentum.
        weight_decay: L2 penalty; by default 0.5 / (learning rate * steps), but 0.05 at most, so
            that it shrinks the weights alike whether the training is short or long.
        warmup_steps: Steps of linear warm-up; by default 5 % of all steps.
        eval_every: Steps between two looks at the validation images; by default 5 % of all steps.
        precision: bfloat16 runs the network under autocast, a little less exactly. auto does on a
            device that has it in hardware, unless finished runs have another.
        horizontal_flip: The standard augmentation mirrors half of the images too. Wrong for digits,
            letters and organs; right for CIFAR.
        device: cpu, cuda, cuda:1 ...; by default a GPU if there is one.

    Raises:
        ValueError: For a value out of range.
    """

    model: str | Builder = "small-cnn"
    steps: int = 1000
    batch_size: int = 64
    learning_rate: float = 0.05
    weight_decay: float | None = None
    warmup_steps: int | None = None
    eval_every: int | None = None
    precision: Precision = "auto"
    horizontal_flip: bool = False
    device: str | None = None

    def __post_init__(self) -> None:
        arguments.check_fields(self)
        arguments.check_at_least(
            1, steps=self.steps, batch_size=self.batch_size, eval_every=self.eval_every
        )
        if not 0 <= (self.warmup_steps or 0) <= self.steps:
            raise ValueError(
                f"`warmup_steps` must be from 0 to `steps`={self.steps}, got {self.warmup_steps}."
            )
        arguments.check_positive(learning_rate=self.learning_rate)
        arguments.check_not_negative(weight_decay=self.weight_decay)
        arguments.check_finite(0, learning_rate=self.learning_rate, weight_decay=self.weight_decay)
        check_precision(self.precision)

    @property
    def model_name(self) -> str:
        """The name of the classifier in reports, the same in every process."""
        return self.model if isinstance(self.model, str) else name_of(self.model)

    def changes(self) -> dict[str, Any]:
        """The fields that differ from the defaults, to tell trainings apart; not the device."""
        defaults = {field.name: field.default for field in fields(self)}
        changed = {name: value for name, value in vars(self).items() if value != defaults[name]}
        changed.pop("device", None)
        return {**changed, "model": self.model_name} if "model" in changed else changed


def name_of(function: object) -> str:
    """Returns the name of a user's function or module, the same in every process."""
    # Not every callable has a name of its own: a module or a `functools.partial` has none.
    return getattr(function, "__qualname__", None) or repr(function)
