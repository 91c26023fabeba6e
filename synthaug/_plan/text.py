"""Settings, sizes and durations as text."""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from synthaug._types import JSON


def canonical_json(value: JSON | Mapping[str, Any]) -> str:
    """JSON in which equal settings are equal text: keys sorted, and 2.0 written as 2. A ValueError
    names the setting that is no JSON."""

    def plain(v: Any, name: str) -> Any:
        if isinstance(v, Mapping):
            return {str(k): plain(x, str(k)) for k, x in v.items()}
        if isinstance(v, list | tuple):
            return [plain(x, name) for x in v]
        if isinstance(v, np.generic):
            v = v.item()
        if isinstance(v, float) and not math.isfinite(v):
            raise ValueError(
                f"The setting `{name}` is {v}, which cannot be written as JSON. Give a finite "
                "number."
            )
        if not (v is None or isinstance(v, str | int | float)):
            raise ValueError(
                f"The setting `{name}` holds a {type(v).__name__}, which cannot be written as "
                "JSON. Give numbers and texts, or lists of them: of an array `.tolist()`."
            )
        return int(v) if isinstance(v, float) and v.is_integer() else v

    return json.dumps(plain(value, "settings"), sort_keys=True, separators=(",", ":"))


def settings_digest(settings: Mapping[str, Any]) -> str:
    """32 hexadecimal digits of blake2b over `canonical_json(settings)`."""
    return hashlib.blake2b(canonical_json(settings).encode(), digest_size=16).hexdigest()


def bytes_text(count: int) -> str:
    """A size to read: "987 bytes", "12.3 kB", "4.5 GB"."""
    if count < 1000:
        return f"{count} bytes"
    power = min(4, (len(str(count)) - 1) // 3)
    return f"{count / 1000**power:,.1f} {('kB', 'MB', 'GB', 'TB')[power - 1]}"


def time_text(seconds: float) -> str:
    """A duration to read: "under a minute", "about 12 minutes", "about 3.5 hours"."""
    if seconds < 60:
        return "under a minute"
    if seconds < 7200:
        minutes = round(seconds / 60)
        return f"about {minutes} minute{'s' * (minutes > 1)}"
    return f"about {seconds / 3600:,.{1 if seconds < 36000 else 0}f} hours"
