"""How many images of each class are synthetic: a number, one per class, or one per epoch."""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import isroutine
from typing import Any, TypeAlias, final

import numpy as np

from synthaug._datasets.schedules import AbstractSchedule
from synthaug._plan import largest_remainders, matching_quota
from synthaug._support.arguments import check_at_least, check_choice, check_fields
from synthaug._support.names import class_name
from synthaug._types import JSON, Doubles, Flags, Labels
from synthaug.errors import MismatchError

Schedule: TypeAlias = Callable[[int], float]
"""Epoch => value, for example `mixing.Linear` and `mixing.Cosine`."""

Share: TypeAlias = float | Schedule | Mapping[Any, float | Schedule]
"""A value, one per epoch, or either of them by class name or index; classes not named get none."""

_PROBED = 256
"""Epochs of a foreign schedule that tell it from another."""


@final
@dataclass(frozen=True)
class Balance:
    """Fills the classes up with synthetic images until all are of one size, for `mode="append"`.

    Balance()                       # as many of each class as the largest has
    Balance(to=500)                 # 500 of each; classes that have more get none
    Balance(to=500, repeat=True)    # also where there are too few different synthetic ones
    """

    to: int | None = None
    """Images of each class, real and synthetic together; `None` for those of the largest class."""
    repeat: bool = False
    """Whether an epoch may show a synthetic image again, after all others of its class. Otherwise a
    class with too few of them is an error."""

    def __post_init__(self) -> None:
        check_fields(self)
        check_at_least(1, to=self.to)


def checked_share(mode: str, fraction: Any, ratio: Any) -> tuple[str, Any]:
    """The name and the value of the one that goes with the mode."""
    check_choice(("replace", "append"), mode=mode)
    needed, other = ("fraction", "ratio") if mode == "replace" else ("ratio", "fraction")
    value, unused = (fraction, ratio) if mode == "replace" else (ratio, fraction)
    if value is None or unused is not None:
        raise ValueError(
            f'mode="{mode}" needs `{needed}` and no `{other}`; got {needed}={value}, '
            f"{other}={unused}."
        )
    if mode == "replace" and isinstance(value, Balance):
        raise ValueError(
            "Replacing images does not change the size of a class. To fill classes up, "
            f'use mode="append" and ratio={value}.'
        )
    return needed, value


@final
class Shares:
    """`fraction` or `ratio` of every class in every epoch."""

    def __init__(self, share: Share, labels: Labels, classes: Sequence[str], name: str) -> None:
        """Checks the arguments, and the shares of epoch 0.

        Args:
            share: The argument of the mixture.
            labels: Labels of the real images.
            classes: Names of the classes.
            name: Name of the argument, "fraction" or "ratio".

        Raises:
            TypeError: If it is neither a number, a dict nor a share.
            ValueError: For a value out of range or an unknown class.
        """
        self._share, self._labels, self._classes, self._name = share, labels, classes, name
        self._values: list[Any] = [0.0 if isinstance(share, Mapping) else share] * len(classes)
        if isinstance(share, Mapping):
            number = {name: c for c, name in enumerate(classes)}
            places = [self._place(key, number) for key in share]
            repeated = Counter(places)
            for place, value in zip(places, share.values(), strict=True):
                if repeated[place] > 1:
                    raise ValueError(f"`{name}` names the class {classes[place]!r} twice: {share}.")
                self._values[place] = value
        self.scheduled = any(map(callable, self._values))
        """Whether it changes with the epoch."""
        self.at(0)

    def _place(self, key: Any, number: Mapping[str, int]) -> int:
        index = isinstance(key, int | np.integer) and not isinstance(key, bool)
        name = key if index or isinstance(key, bool) else class_name(key)
        if not (0 <= key < len(self._classes) if index else name in number):
            raise ValueError(
                f"`{self._name}` names the class {key!r}. The classes are "
                f"{', '.join(self._classes)}, or 0 to {len(self._classes) - 1}."
            )
        return int(key) if index else number[name]

    def at(self, epoch: int) -> Doubles:
        """The value of every class in an epoch, float64 (num_classes,)."""
        called: dict[int, Any] = {}  # a schedule for all classes is asked once
        most = 1.0 if self._name == "fraction" else math.inf
        numbers = []
        for c, value in enumerate(self._values):
            if callable(value):
                if id(value) not in called:
                    called[id(value)] = value(epoch)
                value = called[id(value)]
            try:
                if isinstance(value, str | bool):
                    raise TypeError
                number = float(value)
            except (TypeError, ValueError):
                raise TypeError(
                    f"`{self._name}` is {value!r} for class {self._classes[c]!r}, expected a "
                    "number, a function of the epoch, or a dict of either by class."
                ) from None
            if not (0 <= number <= most and math.isfinite(number)):
                bounds = "at least 0" if most == math.inf else "in [0, 1]"
                where = f" in epoch {epoch}" if self.scheduled else ""
                raise ValueError(f"`{self._name}` must be {bounds}, got {value}{where}.")
            numbers.append(number)
        return np.array(numbers)

    @property
    def possible(self) -> Flags:
        """Classes that get synthetic images, or may get some in some epoch, bool (num_classes,)."""
        present = np.bincount(self._labels, minlength=len(self._classes)) > 0
        return present & [callable(value) or float(value) > 0 for value in self._values]

    def quota(self, epoch: int) -> Labels:
        """Returns the synthetic images of every class in an epoch, int64 (num_classes,).

        The total is rounded once; classes are within one image of their exact numbers.
        """
        ratios = self.at(epoch)
        if not ratios.any():
            return np.zeros(len(ratios), np.int64)
        if (ratios == ratios[0]).all():
            return matching_quota(self._labels, len(ratios), ratio=float(ratios[0]))
        exact = np.bincount(self._labels, minlength=len(ratios)) * ratios
        return largest_remainders(exact, math.floor(float(exact.sum()) + 0.5))

    def __str__(self) -> str:
        return _shown(self._share)

    def recipe(self) -> JSON:
        """Returns the identity of these shares."""
        if isinstance(self._share, Mapping):
            return {str(name): _written(value) for name, value in self._share.items()}
        return _written(self._share)


@final
class Filled:
    """Synthetic images that fill every class up, the same in every epoch."""

    scheduled = False

    def __init__(
        self, balance: Balance, labels: Labels, available: Labels, classes: Sequence[str]
    ) -> None:
        """Counts the images that are missing.

        Args:
            balance: How far to fill.
            labels: Labels of the real images.
            available: Synthetic images of every class that may be served.
            classes: Names of the classes.

        Raises:
            MismatchError: If a class has too few, and they may not be repeated.
        """
        self._balance = balance
        counts = np.bincount(labels, minlength=len(classes))
        to = int(counts.max()) if balance.to is None else balance.to
        self._quota = np.maximum(to - counts, 0)
        short = np.flatnonzero(self._quota > available)
        if len(short) and not balance.repeat:
            c = int(short[np.argmax((self._quota - available)[short])])
            others = f", and {len(short) - 1} other classes are short too" * (len(short) > 1)
            raise MismatchError(
                f"Class {classes[c]!r} has {counts[c]} real images and needs {self._quota[c]} "
                f"synthetic ones to have {to}; {available[c]} may be served{others}. Generate "
                "more, fill up to fewer with `Balance(to=...)`, or show some more than once per "
                "epoch with `Balance(repeat=True)`."
            )

    @property
    def possible(self) -> Flags:
        """Classes that get synthetic images, bool (num_classes,)."""
        return self._quota > 0

    def quota(self, epoch: int) -> Labels:
        """Synthetic images of every class in any epoch, int64 (num_classes,)."""
        del epoch
        return self._quota

    def __str__(self) -> str:
        return repr(self._balance)

    def recipe(self) -> JSON:
        """Returns its identity."""
        return repr(self._balance)


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_shown(part)}" for name, part in value.items())
    if isinstance(value, float | int):
        return f"{value:g}"
    return value.__qualname__ if isroutine(value) else repr(value)


def _written(value: Any) -> JSON:
    if not callable(value):
        return float(value)
    if isinstance(value, AbstractSchedule):
        return repr(value)
    probed = np.array([float(value(epoch)) for epoch in range(_PROBED)])
    return hashlib.blake2b(probed.tobytes(), digest_size=16).hexdigest()
