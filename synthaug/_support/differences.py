"""Lists the differences of two jobs, value by value, for the message that refuses to mix them."""

from collections.abc import Mapping
from typing import Any

Differences = dict[str, tuple[str, str]]
"""Where two things differ -> what the first says, and what the second."""

_ABSENT = object()
_DESCRIBED = 6


def differences(prefix: str, stored: Any, given: Any) -> Differences:
    """The leaves in which two JSON values differ, by their path, which begins with `prefix`."""
    if isinstance(stored, Mapping) and isinstance(given, Mapping):
        found: Differences = {}
        for key in sorted({**stored, **given}):
            path = f"{prefix}.{key}" if prefix else key
            found |= differences(path, stored.get(key, _ABSENT), given.get(key, _ABSENT))
        return found
    return {} if stored == given else {prefix: (_shown(stored), _shown(given))}


def described(found: Differences, first: str, second: str) -> str:
    """One line per difference. Of many, those of the outermost values, and how many more.

    What one side lacks comes last: it mostly follows from a name that differs.
    """
    outermost = sorted(found, key=lambda path: ("absent" in found[path], path.count(".")))
    outermost = outermost[:_DESCRIBED]
    lines = [
        f"  {path}: {a} {first}, {b} {second}"
        for path, (a, b) in found.items()
        if path in outermost
    ]
    more = len(found) - len(lines)
    return "\n".join([*lines, *([f"  and {more} more"] if more else [])])


def _shown(value: Any) -> str:
    text = "absent" if value is _ABSENT else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
