"""Checks of arguments that many functions and settings share; all raise `ValueError`."""

from collections.abc import Sequence
from typing import Any


def check_at_least(least: float, **values: float) -> None:
    """Refuses values below a bound, by their names."""
    for name, value in values.items():
        if not value >= least:
            raise ValueError(f"`{name}` must be at least {least}, got {value}.")


def check_positive(**values: float) -> None:
    """Refuses values that are not above 0, by their names."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"`{name}` must be positive, got {value}.")


def check_fraction(**values: float) -> None:
    """Refuses values outside of [0, 1], by their names."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"`{name}` must be in [0, 1], got {value}.")


def check_choice(choices: Sequence[str], **values: Any) -> None:
    """Refuses values that are not among the choices, by their names."""
    for name, value in values.items():
        if value not in choices:
            known = ", ".join(map(repr, choices))
            raise ValueError(f"`{name}` must be one of {known}, got {value!r}.")
