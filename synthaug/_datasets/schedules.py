"""Values that change from epoch to epoch."""

import math
from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True)
class Linear:
    """From one value to another in equal steps, a value per epoch.

        Linear(0.0, 0.5, epochs=10)              # a ramp: 0 in epoch 0, 0.5 from epoch 10 on
        Linear(0.5, 0.0, epochs=10, after=80)    # annealing: 0.5 up to epoch 80, 0 from epoch 90 on

    Any function of the epoch does in its place; this one prints well.
    """

    start: float
    """Value up to epoch `after`."""
    end: float
    """Value from epoch `after + epochs` on."""
    epochs: int
    """How many epochs it takes from the one to the other."""
    after: int = 0
    """The last epoch with the first value."""

    def __post_init__(self) -> None:
        _check(self)

    def __call__(self, epoch: int) -> float:
        """The value of an epoch."""
        done = _progress(self, epoch)
        return (1 - done) * self.start + done * self.end


@final
@dataclass(frozen=True)
class Cosine:
    """From one value to another along half a cosine, slow at both ends.

        Cosine(0.5, 0.0, epochs=100)

    Arguments as `Linear`.
    """

    start: float
    """Value up to epoch `after`."""
    end: float
    """Value from epoch `after + epochs` on."""
    epochs: int
    """How many epochs it takes from the one to the other."""
    after: int = 0
    """The last epoch with the first value."""

    def __post_init__(self) -> None:
        _check(self)

    def __call__(self, epoch: int) -> float:
        """The value of an epoch."""
        done = (1 - math.cos(math.pi * _progress(self, epoch))) / 2
        return (1 - done) * self.start + done * self.end


def _progress(schedule: Linear | Cosine, epoch: int) -> float:
    return min(1.0, max(0.0, (epoch - schedule.after) / schedule.epochs))


def _check(schedule: Linear | Cosine) -> None:
    if schedule.epochs < 1:
        raise ValueError(f"`epochs` must be at least 1, got {schedule.epochs}.")
    if schedule.after < 0:
        raise ValueError(f"`after` must be at least 0, got {schedule.after}.")
    for name in ("start", "end"):
        value = getattr(schedule, name)
        if not 0 <= value < math.inf:
            raise ValueError(f"`{name}` must be at least 0 and finite, got {value}.")
