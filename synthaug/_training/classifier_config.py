"""How classifiers are trained, as Python and the command line have it; loads nothing heavy."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

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
        steps: Optimiser steps of every classifier.
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
        for name in ("steps", "batch_size", "eval_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        if not 0 <= (self.warmup_steps or 0) <= self.steps:
            raise ValueError(
                f"`warmup_steps` must be from 0 to `steps`={self.steps}, got {self.warmup_steps}."
            )
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"`learning_rate` must be positive, got {self.learning_rate}.")
        if not 0 <= (self.weight_decay or 0) < math.inf:
            raise ValueError(f"`weight_decay` must not be negative, got {self.weight_decay}.")
        check_precision(self.precision)

    @property
    def model_name(self) -> str:
        """The name of the classifier in reports, the same in every process."""
        if isinstance(self.model, str):
            return self.model
        return getattr(self.model, "__qualname__", None) or repr(self.model)

    def changes(self) -> dict[str, Any]:
        """The fields that differ from the defaults, to tell trainings apart; not the device."""
        names = [field.name for field in fields(self) if field.name not in ("model", "device")]
        changed = {
            name: getattr(self, name)
            for name in names
            if getattr(self, name) != getattr(ClassifierConfig, name)
        }
        return (
            changed
            if self.model == ClassifierConfig.model
            else {"model": self.model_name, **changed}
        )
