"""Values that change from epoch to epoch."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

from synthaug._support.arguments import check_at_least, check_fields, check_finite


@dataclass(frozen=True)
class AbstractSchedule(ABC):
    """Goes from one value to another, a value per epoch; subclasses say along which curve."""

    start: float
    """Value up to epoch `after`."""
    end: float
    """Value from epoch `after + epochs` on."""
    epochs: int
    """How many epochs it takes from the one to the other."""
    after: int = 0
    """The last epoch with the first value."""

    def __post_init__(self) -> None:
        check_fields(self)
        check_at_least(1, epochs=self.epochs)
        check_at_least(0, after=self.after)
        check_finite(0, start=self.start, end=self.end)
        for name in ("start", "end"):  # 0 and 0.0 are one schedule, also in what is hashed
            object.__setattr__(self, name, float(vars(self)[name]))

    def __call__(self, epoch: int) -> float:
        """The value of an epoch."""
        done = self._curve(min(1.0, max(0.0, (epoch - self.after) / self.epochs)))
        return (1 - done) * self.start + done * self.end

    @abstractmethod
    def _curve(self, progress: float) -> float:
        """How much of the way is done when this share of the epochs is over; both in [0, 1]."""


@final
@dataclass(frozen=True)
class Linear(AbstractSchedule):
    """From one value to another in equal steps, a value per epoch.

        Linear(0.0, 0.5, epochs=10)              # a ramp: 0 in epoch 0, 0.5 from epoch 10 on
        Linear(0.5, 0.0, epochs=10, after=80)    # annealing: 0.5 up to epoch 80, 0 from epoch 90 on

    Any function of the epoch does in its place; this one prints well.
    """

    def _curve(self, progress: float) -> float:
        return progress


@final
@dataclass(frozen=True)
class Cosine(AbstractSchedule):
    """From one value to another along half a cosine, slow at both ends.

    Cosine(0.5, 0.0, epochs=100)
    """

    def _curve(self, progress: float) -> float:
        return (1 - math.cos(math.pi * progress)) / 2
