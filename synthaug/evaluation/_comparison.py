"""Labeled sets of images that are compared with one another: what all of them must agree in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from synthaug._images.source import ImageSource
from synthaug._support.progress import bar, counted
from synthaug._types import Features, Indices, Labels
from synthaug.errors import MismatchError
from synthaug.features import ExtractionConfig, Extractor, extract

_CHUNK = 4096


def common_classes(sources: Mapping[str, ImageSource]) -> tuple[str, ...]:
    """The class names of the first set that has any; a MismatchError if another one has others.
    Their order may differ: `labels_in`."""
    names = same_classes({name: source.classes for name, source in sources.items()})
    if names is not None:
        return names
    return tuple(map(str, range(1 + max(int(s.labels.max()) for s in sources.values()))))


def same_classes(classes: Mapping[str, Sequence[str] | None]) -> tuple[str, ...] | None:
    """The first of several lists of class names, `None` if all are; a MismatchError if two lists
    have other names, in whatever order."""
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
    number = {name: index for index, name in enumerate(classes)}
    return np.array([number[name] for name in source.classes], np.int64)[source.labels]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Sets of labeled images that are compared with the set `synthetic`, by their names."""

    sources: Mapping[str, ImageSource]
    classes: tuple[str, ...]
    """Class names in the order in which labels are counted."""
    rows: Mapping[str, Indices]
    """For each set the rows that can be read, at least one."""
    labels: Mapping[str, Labels]
    """For each set the label of every row, int64 (N,), counted in the order of `classes`."""

    @classmethod
    def open(cls, **sets: Any) -> "Comparison":
        """Opens the sets; one that is `None` is left out.

        Raises:
            ValueError: For a set without images.
            MismatchError: If classes or image shapes differ, or if `holdout` is one of the others.
        """
        sources = {n: ImageSource.open(x, f"`{n}`") for n, x in sets.items() if x is not None}
        classes = common_classes(sources)
        rows = {name: source.done_rows("scored") for name, source in sources.items()}
        _check_comparable(sources, rows)
        labels = {name: labels_in(classes, source) for name, source in sources.items()}
        return cls(sources=sources, classes=classes, rows=rows, labels=labels)


def _check_comparable(sources: Mapping[str, ImageSource], rows: Mapping[str, Indices]) -> None:
    """Refuses images of another shape than the synthetic ones, and one set under two names."""
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
    extraction: ExtractionConfig,
    *,
    progress: bool,
) -> Features:
    """Features of some images, with the pixels of a part of them in memory at a time.

    Args:
        source: The images.
        rows: Images by number, int64 (n,).
        extractor: The extractor of the features.
        name: Names the images on the bar.
        extraction: How features are computed, and where they are kept; in this process.
        progress: Shows a bar.

    Returns:
        float32 (n, d).
    """
    parts = []
    starts = range(0, len(rows), _CHUNK)
    job = bar(len(starts), f"features, {name}", "block", progress=progress)
    size, folder = extraction.batch_size, extraction.folder
    for start in counted(starts, job):
        pixels = source.pixels(rows[start : start + _CHUNK])
        parts.append(extract(extractor, pixels, batch_size=size, features_dir=folder))
    return np.concatenate(parts)
