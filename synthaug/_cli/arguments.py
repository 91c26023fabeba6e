"""What several commands do with their arguments."""

import json
import shlex
from collections.abc import Sequence
from typing import Any


def names(given: str | Sequence[str]) -> list[str]:
    """The names in "a,b", in '["a", "b"]', or in a list."""
    if isinstance(given, str) and given.startswith("["):
        given = json.loads(given)
    parts = given.split(",") if isinstance(given, str) else given
    return [str(part).strip() for part in parts]


def contents(cache: Any) -> dict[str, Any]:
    """A cache in a few numbers, for programs."""
    from synthaug._cache import info

    facts = info(cache)
    return {"cache": str(cache.path), "rows": facts["rows"], **facts["states"]}


def next_audit(cache: str, train: str | None = None) -> str:
    """The line that comes after a cache was made."""
    line = shlex.join(["synthaug", "audit", cache, train or "TRAIN", "--holdout", "HOLDOUT"])
    return f"Next: {line}"
