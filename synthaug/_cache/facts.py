"""Facts of a cache: how it was made, what it holds, and a sheet of its images."""

import os
from typing import Any

import numpy as np
import torch
from PIL import Image

from synthaug import _pixels
from synthaug._cache.format import State
from synthaug._cache.show import ORDER, evenly
from synthaug._cache.store import SynthCache
from synthaug._printable import printable_line
from synthaug._support.arguments import check_whole
from synthaug._types import Integers

_MOST_LINES = 200
"""Classes that a terminal is told of, one line each."""


def info(cache: SynthCache) -> dict[str, Any]:
    """Returns the contents and the origin of a cache as JSON.

    Returns:
        "path", "bytes", "image_shape", "encoding", "rows", "states" (rows per state), "classes"
        (per class the rows per state), "identity", "manifest", and "plan_columns" with the range of
        each column.
    """
    by_class = np.zeros((len(cache.classes), len(State)), np.int64)
    for start, labels in cache.plan.pieces("label"):
        pairs = labels * len(State) + cache.state_of(slice(start, start + len(labels)))
        by_class += np.bincount(pairs, minlength=by_class.size).reshape(by_class.shape)

    def counts(found: Integers) -> dict[str, int]:
        return {s.name.lower(): int(found[s]) for s in ORDER}

    columns = {
        name: dict(zip(("min", "max"), cache.plan.bounds(name), strict=True))
        for name in cache.plan.columns
        if name != "seed" and not name.endswith("_key")  # hashes: their range says nothing
    }
    return {
        "path": str(cache.path),
        "bytes": os.stat(cache.path).st_size,
        "image_shape": list(cache.image_shape),
        "encoding": cache.encoding,
        "rows": len(cache),
        "states": counts(by_class.sum(axis=0)),
        "classes": {name: counts(row) for name, row in zip(cache.classes, by_class, strict=True)},
        "plan_columns": columns,
        "identity": cache.identity,
        "manifest": cache.manifest,
    }


def info_text(cache: SynthCache) -> str:
    """`info` for a terminal."""
    facts = info(cache)
    manifest = facts["manifest"]
    recipe, license, source = manifest["recipe"], manifest["license"], manifest["source"]
    classes = facts["classes"]
    shown = {printable_line(name): classes[name] for name in [*classes][:_MOST_LINES]}
    width = max(map(len, (*shown, "class")))
    table = [f"    {'class':{width}}  {'done':>9} {'pending':>9} {'withdrawn':>9}"]
    for name, counts in shown.items():
        numbers = " ".join(f"{counts[s.name.lower()]:>9,}" for s in ORDER)
        table.append(f"    {name:{width}}  {numbers}")
    if (more := len(classes) - _MOST_LINES) > 0:
        table.append(f"    {more:,} more classes: see --json")
    made = {
        "Synthesizer": recipe.get("synthesizer", "unknown"),
        **_named_values("Setting", recipe.get("settings")),
        **_named_values("Weights", recipe.get("weights")),
        "Real data": _real_data(source),
        "License of the generator": _named(license, "generator"),
        "License of the real data": _named(license, "source"),
        "Made with": ", ".join(f"{k} {v}" for k, v in manifest["versions"].items()),
        "Stored as": facts["encoding"],
        "Plan": facts["identity"]["plan_digest"],
        "Size": f"{facts['bytes'] / 1e6:,.1f} MB",
    }
    lines = [f"    {_short(name)}: {_short(value)}" for name, value in made.items()]
    return "\n".join([repr(cache), *lines, *table])


def contact_sheet(
    cache: SynthCache,
    *,
    columns: int = 10,
    rows_per_class: int = 1,
    scale: int | None = None,
    most_classes: int | None = None,
) -> Image.Image:
    """Images of every class that has any, class by class, on one sheet.

    Args:
        cache: A cache with at least one row that is done.
        columns: Images side by side.
        rows_per_class: Lines for each class; a class with fewer images gets blank tiles.
        scale: Enlargement without smoothing; chosen from the image size if `None`.
        most_classes: Show no more classes than so many; all if `None`.

    Raises:
        ValueError: No row is done, or a number is not a whole number from 1 on.
    """
    check_whole(1, columns=columns, rows_per_class=rows_per_class)
    check_whole(1, scale=scale, most_classes=most_classes)
    done = np.flatnonzero(cache.done)
    if not len(done):
        raise ValueError(f"{cache.path} holds no image to show yet. Generate some first.")
    per_class = columns * rows_per_class
    tiles = []
    labels = cache.labels_of(done)
    by_class = done[np.argsort(labels, kind="stable")]
    ends = np.cumsum(np.unique(labels, return_counts=True)[1])[:most_classes]
    for rows in np.split(by_class, ends)[: len(ends)]:
        chosen = evenly(rows, per_class)
        sheet = np.full((per_class, *cache.image_shape), 255, np.uint8)
        sheet[: len(chosen)] = cache.read(chosen).numpy()
        tiles.append(sheet)
    scale = scale or max(1, 64 // max(cache.image_shape[1:]))
    return _pixels.grid(torch.from_numpy(np.concatenate(tiles)), columns=columns, scale=scale)


def _real_data(source: Any) -> str:
    if source is None:
        return "not recorded"
    if isinstance(source, dict):
        return ", ".join(f"{k} {v}" for k, v in source.items())
    return str(source)


def _named(license: Any, key: str) -> str:
    value = license.get(key) if isinstance(license, dict) else None
    return str(value) if value else "not recorded"


def _named_values(what: str, values: Any) -> dict[str, Any]:
    """Returns the settings in a recipe, if we wrote it, as names and values."""
    if isinstance(values, dict):
        return {f"{what} {name}": value for name, value in values.items()}
    return {} if values is None else {what: values}


def _short(value: Any) -> str:
    shown = printable_line(str(value))
    return shown if len(shown) <= 100 else shown[:97] + "..."
