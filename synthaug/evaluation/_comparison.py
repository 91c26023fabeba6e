"""Labelled sets of images that are compared with one another: what all of them must agree in."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from synthaug._images.labeled import as_pixels, classes_of, labels_of
from synthaug._support.progress import bar, counted
from synthaug._types import Features, Indices, Labels
from synthaug.errors import MismatchError
from synthaug.features import Extractor, extract

_CHUNK = 4096


def common_classes(given: Mapping[str, Any]) -> tuple[str, ...]:
    """The class names of the first set that has any, which must be those of all others that do.

    Args:
        given: The sets by their names in messages.

    Raises:
        MismatchError: If two sets have other classes. Their order may differ: `labels_in`.
    """
    known = {name: classes_of(one) for name, one in given.items()}
    named = {name: tuple(map(str, one)) for name, one in known.items() if one is not None}
    if not named:
        highest = max(int(np.max(labels_of(one))) for one in given.values())
        return tuple(map(str, range(highest + 1)))
    first, classes = next(iter(named.items()))
    for name, other in named.items():
        if sorted(other) != sorted(classes):
            raise MismatchError(
                f"`{first}` has the classes {', '.join(classes)}; `{name}` has {', '.join(other)}. "
                "All must name the same ones."
            )
    return classes


def labels_in(classes: Sequence[str], given: Any) -> Labels:
    """The labels of a set, int64 (N,), counted in the order of `classes`, matched by name."""
    own, labels = classes_of(given), labels_of(given)
    return labels if own is None else np.array([classes.index(c) for c in own], np.int64)[labels]


def readable_rows(given: Any, name: str) -> Indices:
    """The rows that can be read, at least one: of a cache those that are done.

    Raises:
        ValueError: If there is none.
    """
    done = getattr(given, "done", None)
    rows = np.arange(len(given)) if done is None else np.flatnonzero(np.asarray(done))
    if len(rows) == 0:
        what = "no row of it is generated yet" if len(given) else "it holds no image"
        raise ValueError(f"`{name}` cannot be scored: {what}.")
    return rows


def check_shapes(given: Mapping[str, Any], rows: Mapping[str, Indices]) -> None:
    """Refuses sets whose images have another shape than those of the set `synthetic`.

    Raises:
        MismatchError: Naming both.
    """
    shapes = {name: tuple(as_pixels(one, rows[name][:1]).shape[1:]) for name, one in given.items()}
    for name, shape in shapes.items():
        if shape != shapes["synthetic"]:
            raise MismatchError(
                f"`synthetic` holds images of shape {shapes['synthetic']}, `{name}` of shape "
                f"{shape}. Load the real ones with the shape of the synthetic ones "
                "(`image_shape=cache.image_shape`)."
            )


def features_of(
    given: Any,
    rows: Indices,
    extractor: Extractor,
    name: str,
    *,
    batch_size: int = 512,
    features_dir: str | None = None,
    progress: bool = True,
) -> Features:
    """float32 (n, d), with the pixels of a part of the rows in memory at a time."""
    parts = []
    starts = range(0, len(rows), _CHUNK)
    shown = bar(len(starts), f"features, {name}", "block", progress=progress)
    for start in counted(starts, shown):
        pixels = as_pixels(given, rows[start : start + _CHUNK], progress=False)
        parts.append(extract(extractor, pixels, batch_size=batch_size, features_dir=features_dir))
    return np.concatenate(parts)
