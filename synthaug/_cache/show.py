"""A cache for the eye: text, a small page for notebooks, a contact sheet, and all its facts."""

import base64
import html
import io
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from synthaug import _pixels
from synthaug._cache.format import State
from synthaug._types import Indices

if TYPE_CHECKING:
    from synthaug._cache.store import SynthCache

_THUMBNAILS = 24
_ORDER = (State.DONE, State.PENDING, State.WITHDRAWN)


def text(cache: "SynthCache") -> str:
    """As torchvision shows a data set."""
    c, h, w = cache.image_shape
    counts = np.bincount(cache.state, minlength=len(State))
    lines = [
        "Dataset SynthCache",
        f"    Number of datapoints: {len(cache)}",
        f"    Rows: {', '.join(f'{counts[state]:,} {state.name.lower()}' for state in _ORDER)}",
        f"    Classes: {len(cache.classes)}",
        f"    Images: {c} x {h} x {w}, synthetic",
        f"    Location: {cache.path}",
    ]
    return "\n".join(lines)


def page(cache: "SynthCache") -> str:
    """`text`, and up to 24 images spread over the rows that are done, as HTML."""
    done = np.flatnonzero(cache.done)
    rows = done[np.linspace(0, len(done) - 1, min(_THUMBNAILS, len(done))).astype(np.int64)]
    figures = []
    for row, image in zip(rows.tolist(), cache.read(rows), strict=True):
        buffer = io.BytesIO()
        _pixels.to_pil(image).save(buffer, format="PNG")
        data = base64.b64encode(buffer.getvalue()).decode()
        title = html.escape(f"{row}: {cache.classes[int(cache.labels[row])]}", quote=True)
        figures.append(
            f'<img src="data:image/png;base64,{data}" title="{title}" alt="{title}" '
            'style="width:64px;margin:1px;image-rendering:pixelated">'
        )
    return f"<pre>{html.escape(text(cache))}</pre><div>{''.join(figures)}</div>"


def info(cache: "SynthCache") -> dict[str, Any]:
    """What a cache holds and how it was made, as JSON.

    Returns:
        "path", "bytes", "image_shape", "rows", "states" (rows per state), "classes" (per class the
        rows per state), "identity", "manifest", and "plan_columns" with the range of each column.
    """
    state = cache.state

    def counts(rows: Indices) -> dict[str, int]:
        found = np.bincount(state[rows], minlength=len(State))
        return {s.name.lower(): int(found[s]) for s in _ORDER}

    columns = {
        name: {"min": column.min().item(), "max": column.max().item()}
        for name, column in cache.plan.columns.items()
        if name != "seed" and not name.endswith("_key")  # hashes: their range says nothing
    }
    return {
        "path": str(cache.path),
        "bytes": os.stat(cache.path).st_size,
        "image_shape": list(cache.image_shape),
        "rows": len(cache),
        "states": counts(np.arange(len(cache))),
        "classes": {
            name: counts(np.flatnonzero(cache.labels == index))
            for index, name in enumerate(cache.classes)
        },
        "plan_columns": columns,
        "identity": cache.identity,
        "manifest": cache.manifest,
    }


def info_text(cache: "SynthCache") -> str:
    """`info` for a terminal."""
    facts = info(cache)
    manifest = facts["manifest"]
    recipe, licence, source = manifest["recipe"], manifest["licence"], manifest["source"]
    width = max(len(name) for name in (*cache.classes, "class"))
    table = [f"    {'class':{width}}  {'done':>9} {'pending':>9} {'withdrawn':>9}"]
    for name, counts in facts["classes"].items():
        numbers = " ".join(f"{counts[s.name.lower()]:>9,}" for s in _ORDER)
        table.append(f"    {name:{width}}  {numbers}")
    made = {
        "Synthesizer": recipe.get("synthesizer", "unknown"),
        **{f"Setting {k}": v for k, v in recipe.get("settings", {}).items()},
        **{f"Weights {k}": v for k, v in recipe.get("weights", {}).items()},
        "Real data": _real_data(source),
        "Licence of the generator": _named(licence, "generator"),
        "Licence of the real data": _named(licence, "source"),
        "Made with": ", ".join(f"{k} {v}" for k, v in manifest["versions"].items()),
        "Plan": facts["identity"]["plan_digest"],
        "Size": f"{facts['bytes'] / 1e6:,.1f} MB",
    }
    lines = [f"    {name}: {_short(value)}" for name, value in made.items()]
    return "\n".join([text(cache), *lines, *table])


def contact_sheet(
    cache: "SynthCache",
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
        ValueError: No row is done.
    """
    done = cache.done
    if not done.any():
        raise ValueError(f"{cache.path} holds no image to show yet.")
    per_class = columns * rows_per_class
    tiles = []
    for index in np.unique(cache.labels[done])[:most_classes].tolist():
        rows = np.flatnonzero(done & (cache.labels == index))
        chosen = rows[np.linspace(0, len(rows) - 1, min(per_class, len(rows))).astype(np.int64)]
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


def _named(licence: Any, key: str) -> str:
    value = licence.get(key) if isinstance(licence, dict) else None
    return str(value) if value else "not recorded"


def _short(value: Any) -> str:
    shown = str(value)
    return shown if len(shown) <= 100 else shown[:97] + "..."
