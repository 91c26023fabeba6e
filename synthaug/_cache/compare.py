"""Compares two caches, value by value."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from synthaug._plan import Plan
from synthaug._support.differences import Differences, differences


def manifest_differences(stored: Mapping[str, Any], given: Mapping[str, Any]) -> Differences:
    """Where two manifests would lead to different images; library versions may differ."""
    return differences("", _binding(stored), _binding(given))


def recipe_differences(stored: Any, given: Any) -> Differences:
    """Where two recipes differ."""
    return differences("recipe", stored, given)


def shape_differences(stored: Sequence[int], given: Sequence[int]) -> Differences:
    """Where two image shapes differ."""
    return differences("image_shape", tuple(stored), tuple(given))


def encoding_differences(stored: str, given: str) -> Differences:
    """Where two encodings differ."""
    return differences("encoding", stored, given)


def plan_differences(stored: Plan, given: Plan) -> Differences:
    """Where two plans differ, by column."""
    if len(stored) != len(given):
        return {"plan rows": (f"{len(stored):,}", f"{len(given):,}")}
    if stored.digest == given.digest:
        return {}
    found = {}
    for name in sorted({*stored.columns, *given.columns}):
        if name not in stored.columns or name not in given.columns:
            has = name in stored.columns
            found[f"plan column {name}"] = ("present", "absent") if has else ("absent", "present")
            continue
        pairs = zip(stored.pieces(name), given.pieces(name), strict=True)
        unequal = [np.flatnonzero(ours != theirs) + start for (start, ours), (_, theirs) in pairs]
        rows = np.concatenate(unequal)
        if len(rows):
            where = f"plan column {name}, {listed(rows)}"
            first = rows[:1]
            found[where] = (f"{stored.at(name, first)[0]}", f"{given.at(name, first)[0]}")
    seeds = {where for where in found if where.startswith("plan column seed,")}
    if len(found) > len(seeds):  # they follow from the rest of a row, which says more
        found = {where: values for where, values in found.items() if where not in seeds}
    return found


def listed(rows: Any) -> str:
    """Names a few rows: "row 3", "rows 3, 5 and 12 more"."""
    numbers = np.asarray(rows).tolist()
    first = ", ".join(map(str, numbers[:5]))
    more = f" and {len(numbers) - 5:,} more" if len(numbers) > 5 else ""
    return f"row{'s' if len(numbers) != 1 else ''} {first}{more}"


def _binding(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the entries of a manifest that decide the images; others may change between runs."""
    source = manifest["source"]
    if isinstance(source, Mapping) and "fingerprint" in source:  # a folder may be moved
        source = {"fingerprint": source["fingerprint"]}
    decided = {k: manifest[k] for k in ("recipe", "classes", "settings")}
    # Only an encoding with losses is named there. One of a file of images says what was lost.
    return {**decided, "source": source, "lossy encoding": manifest.get("encoding")}
