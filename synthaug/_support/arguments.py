"""Checks of arguments that many functions and settings share, with one style of message.

    check_at_least(1, steps=steps, batch_size=batch_size)
    check_within("[0, 1)", "Give a share of the images.", label_dropout=label_dropout)

A message names the argument, says what it must be and what it is, and ends with the remedy if the
caller gives one. A value of `None` was not given, and passes all checks of numbers.
"""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import fields
from numbers import Integral, Real
from types import NoneType
from typing import Any, get_args, get_origin


def check_at_least(least: float, remedy: str = "", /, **values: float | None) -> None:
    """Refuses values below a bound with a ValueError."""
    for name, value in _numbers(values):
        if not value >= least:
            raise _unfit(name, f"at least {least}", value, remedy)


def check_whole(least: float, remedy: str = "", /, **values: Any) -> None:
    """Refuses anything but a whole number from a bound on with a ValueError; also `True`."""
    for name, value in values.items():
        if value is not None and not _is_whole(value):
            raise _unfit(name, "a whole number", repr(value), remedy)
    check_at_least(least, remedy, **values)


def check_number(**values: Any) -> None:
    """Refuses texts and `True`, which is 1 to Python, with a ValueError."""
    for _ in _numbers(values):
        pass


def check_fields(config: Any, /) -> None:
    """Refuses fields of a dataclass that hold another kind of value than they declare.

    A float would be cut where a count is meant, `True` is 1 to Python, and the text "no" is true.
    NaN is refused, too: it passes every comparison that is written the wrong way round. A field
    that declares a tuple of numbers takes any sequence of them, which becomes that tuple. A `seed`
    must not be negative.

    Raises:
        ValueError: Naming the field.
    """
    for declared in fields(config):
        name, kind = declared.name, declared.type
        value = vars(config).get(name)
        kinds = get_args(kind) or (kind,)
        if name not in vars(config) or (value is None and NoneType in kinds):
            continue
        known = [one for one in _KINDS if one in kinds]
        if get_origin(kind) is tuple and known:
            object.__setattr__(config, name, _numbers_of(name, value, kinds))
        elif known and (isinstance(value, Real) or all(k in (*_KINDS, NoneType) for k in kinds)):
            wanted, fits = _KINDS[known[-1]]
            if not fits(value):
                raise _unfit(name, wanted, repr(value), "")
        elif all(k in (str, NoneType) for k in kinds) and not isinstance(value, str):
            raise _unfit(name, "a text", repr(value), "")
        if name == "seed":
            check_not_negative(seed=value)


def _numbers_of(name: str, value: Any, kinds: tuple[Any, ...]) -> tuple[Any, ...]:
    """A sequence of numbers as the tuple that a field declares, of Python's own numbers."""
    wanted, fits = _KINDS[kinds[0]]
    count = None if kinds[-1] is ... else len(kinds)
    several = f"{'several' if count is None else count} {wanted.removeprefix('a ')}s"
    listed = value.tolist() if hasattr(value, "tolist") else value  # NumPy's and torch's arrays
    if not isinstance(listed, tuple | list | range) or count not in (None, len(listed)):
        raise _unfit(name, f"a list or tuple of {several}", repr(value), "")
    if wrong := [one for one in listed if not fits(one)]:
        raise _unfit(name, f"a list or tuple of {several}", f"{wrong[0]!r} in it", "")
    return tuple(kinds[0](one) for one in listed)


def _numbers(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The values that were given; refuses texts, and `True`, which is 1 to Python."""
    for name, value in values.items():
        if isinstance(value, str) or _is_bool(value):
            raise _unfit(name, "a number", repr(value), "")
        if value is not None:
            yield name, value


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool) or type(value).__name__ in ("bool", "bool_")  # numpy's


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not _is_bool(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not _is_bool(value) and not math.isnan(value)


_KINDS: dict[type, tuple[str, Callable[[Any], bool]]] = {
    bool: ("True or False", _is_bool),
    int: ("a whole number", _is_whole),
    float: ("a number", _is_number),
}


def check_not_negative(remedy: str = "", /, **values: float | None) -> None:
    """Refuses values below 0 with a ValueError."""
    for name, value in _numbers(values):
        if not value >= 0:
            raise ValueError(f"`{name}` must not be negative, got {value}. {remedy}".rstrip())


def check_between(least: float, most: float, reason: str = "", /, **values: float | None) -> None:
    """Refuses values outside of [least, most] with a ValueError.

    Args:
        least: Smallest value.
        most: Largest value.
        reason: Goes on after the bounds, to say what they are: ", as many as there are images".
        values: By the names of the arguments.
    """
    for name, value in _numbers(values):
        if not least <= value <= most:
            raise ValueError(f"`{name}` must be from {least} to {most}{reason}, got {value}.")


def check_positive(remedy: str = "", /, **values: float | None) -> None:
    """Refuses values that are not above 0 with a ValueError."""
    for name, value in _numbers(values):
        if not value > 0:
            raise _unfit(name, "positive", value, remedy)


def check_finite(least: float, remedy: str = "", /, **values: float | None) -> None:
    """Refuses values below a bound, infinity and NaN with a ValueError."""
    for name, value in _numbers(values):
        if not least <= value < math.inf:
            raise _unfit(name, f"at least {least} and finite", value, remedy)


def check_within(interval: str, remedy: str = "", /, **values: float | None) -> None:
    """Refuses values outside of an interval with a ValueError.

    Args:
        interval: An interval as in mathematics, "[0, 1)" for 0 <= value < 1.
        remedy: A sentence.
        values: By the names of the arguments.
    """
    low, high = map(float, interval[1:-1].split(","))
    for name, value in _numbers(values):
        above = value > low or (value == low and interval[0] == "[")
        below = value < high or (value == high and interval[-1] == "]")
        if not (above and below):
            raise _unfit(name, f"in {interval}", value, remedy)


def check_fraction(remedy: str = "", /, **values: float | None) -> None:
    """Refuses values outside of [0, 1] with a ValueError."""
    check_within("[0, 1]", remedy, **values)


def check_choice(choices: Iterable[Any], remedy: str = "", /, **values: Any) -> None:
    """Refuses values that are not among the choices with a ValueError."""
    known = tuple(choices)
    for name, value in values.items():
        if value not in known:
            raise _unfit(name, f"one of {', '.join(map(repr, known))}", repr(value), remedy)


def check_type(kind: Any, remedy: str, /, **values: Any) -> None:
    """Refuses values of another type with a TypeError.

    Args:
        kind: A type or a tuple of types, for `isinstance`.
        remedy: The expected value, a noun phrase that may go on with how to make one: "a Plan:
            `synthesizer.plan(...)`".
        values: By the names of the arguments.
    """
    for name, value in values.items():
        if not isinstance(value, kind):
            raise TypeError(f"`{name}` is a {type(value).__name__}, expected {remedy}.")


def check_distinct(remedy: str = "", /, **values: Sequence[Hashable]) -> None:
    """Refuses sequences that hold a value more than once with a ValueError."""
    for name, sequence in values.items():
        value, count = Counter(sequence).most_common(1)[0] if len(sequence) else (None, 0)
        if count > 1:
            raise ValueError(f"`{name}` holds {value!r} more than once. {remedy}".rstrip())


def check_some(what: str, remedy: str = "", /, **values: Sized) -> None:
    """Refuses empty collections with a ValueError that says what they lack, such as "image"."""
    for name, value in values.items():
        if not len(value):
            raise ValueError(f"`{name}` holds no {what}. {remedy}".rstrip())


def _unfit(name: str, wanted: str, value: Any, remedy: str) -> ValueError:
    return ValueError(f"`{name}` must be {wanted}, got {value}. {remedy}".rstrip())
