"""Settings out of a file, compared with the function that they are for before it is called."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any


def unfit_setting(function: Callable[..., Any], settings: Mapping[str, Any]) -> str | None:
    """The first setting of another type than the default of its parameter.

    Args:
        function: Foreign code, whose checks of types, if it has any, come late.
        settings: By the names of its parameters; others are passed over.

    Returns:
        What is wrong, as "`clip_sample` is 'x', expected bool"; `None` if nothing is.
    """
    for name, parameter in inspect.signature(function).parameters.items():
        default = parameter.default
        if name not in settings or not isinstance(default, bool | int | float | str):
            continue
        value, hint = settings[name], str(parameter.annotation)
        kind = type(default) if isinstance(default, bool | str) else float
        if value is None and ("None" in hint or "Optional" in hint):
            continue
        if (isinstance(value, list) and "uple" not in hint) or not _is_a(kind, value):
            return f"`{name}` is {str(value)[:40]!r}, expected {type(default).__name__}"
    return None


def _is_a(kind: type, value: Any) -> bool:
    if isinstance(value, list):  # one setting per block, or per block of each block
        return all(_is_a(kind, one) for one in value)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind)
