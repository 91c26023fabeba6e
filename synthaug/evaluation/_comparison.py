"""Labelled sets of images that are compared with one another: what all of them must agree in."""

from collections.abc import Mapping, Sequence

import numpy as np

from synthaug._images.source import ImageSource
from synthaug._support.progress import bar, counted
from synthaug._types import Features, Indices, Labels
from synthaug.errors import MismatchError
from synthaug.features import Extractor, extract

_CHUNK = 4096


def common_classes(sources: Mapping[str, ImageSource]) -> tuple[str, ...]:
    """The class names of the first set that has any, which must be those of all others that do.

    Raises:
        MismatchError: If two sets have other classes. Their order may differ: `labels_in`.
    """
    names = same_classes({name: source.classes for name, source in sources.items()})
    if names is not None:
        return names
    return tuple(map(str, range(1 + max(int(s.labels.max()) for s in sources.values()))))


def same_classes(classes: Mapping[str, Sequence[str] | None]) -> tuple[str, ...] | None:
    """The first of several lists of class names, `None` if all of them are.

    Raises:
        MismatchError: If two lists have other names, in whatever order.
    """
    named = {name: tuple(map(str, one)) for name, one in classes.items() if one is not None}
    if not named:
        return None
    first, names = next(iter(named.items()))
    for name, other in named.items():
        if sorted(other) != sorted(names):
            raise MismatchError(
                f"`{first}` has the classes {', '.join(names)}; `{name}` has {', '.join(other)}. "
                "All must name the same ones."
            )
    return names


def labels_in(classes: Sequence[str], source: ImageSource) -> Labels:
    """The labels of a set, int64 (N,), counted in the order of `classes`, matched by name."""
    if source.classes is None:
        return source.labels
    return np.array([classes.index(c) for c in source.classes], np.int64)[source.labels]


def check_comparable(sources: Mapping[str, ImageSource], rows: Mapping[str, Indices]) -> None:
    """Refuses sets that cannot be compared with the set `synthetic`.

    Raises:
        MismatchError: For images of another shape than the synthetic ones, naming both; or if
            `holdout` is one of the other sets.
    """
    prints = {name: source.fingerprint for name, source in sources.items()}
    for name in prints.keys() - {"synthetic", "holdout"}:
        if prints[name] is not None and prints[name] == prints.get("holdout"):
            raise MismatchError(f"`holdout` is `{name}`. Give images that are not among `{name}`.")
    shapes = {name: source.pixels(rows[name][:1]).shape[1:] for name, source in sources.items()}
    for name, shape in shapes.items():
        if shape != shapes["synthetic"]:
            raise MismatchError(
                f"`synthetic` holds images of shape {tuple(shapes['synthetic'])}, `{name}` of "
                f"shape {tuple(shape)}. Load the real ones with the shape of the synthetic ones "
                "(`image_shape=cache.image_shape`)."
            )


def features_of(
    source: ImageSource,
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
        pixels = source.pixels(rows[start : start + _CHUNK])
        parts.append(extract(extractor, pixels, batch_size=batch_size, features_dir=features_dir))
    return np.concatenate(parts)
