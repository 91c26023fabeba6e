"""The plan: a table with one row per synthetic image, complete before any image is made.

Knowing every row first makes a job reproducible (an image is a pure function of weights, settings
and its row), resumable (what is left are the rows not yet done), shardable (a slice is a plan),
estimable, and auditable (the provenance of an image is its row).
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from synthaug._support.arguments import check_at_least, check_distinct
from synthaug._types import JSON, Labels

_SHOWN = 12  # classes in a notebook

REQUIRED = ("label", "source", "source_key", "variant", "seed")
"""Columns that every plan has; all others are parameters of the synthesizer."""

_DTYPES = {
    "label": np.int64,
    "source": np.int64,
    "source_key": np.uint64,
    "variant": np.int64,
    "seed": np.uint64,
}


def canonical_json(value: JSON | Mapping[str, Any]) -> str:
    """JSON in which equal settings are equal text: keys sorted, and 2.0 written as 2."""

    def plain(v: Any) -> Any:
        if isinstance(v, Mapping):
            return {str(k): plain(x) for k, x in v.items()}
        if isinstance(v, list | tuple):
            return [plain(x) for x in v]
        if isinstance(v, np.generic):
            v = v.item()
        if isinstance(v, float) and not math.isfinite(v):
            raise ValueError(f"{v} cannot be written as JSON; give a finite number.")
        if isinstance(v, float) and v.is_integer():
            return int(v)
        return v

    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def settings_digest(settings: Mapping[str, Any]) -> str:
    """32 hexadecimal digits of blake2b over `canonical_json(settings)`."""
    return hashlib.blake2b(canonical_json(settings).encode(), digest_size=16).hexdigest()


def row_seed(base_seed: int, settings: str, source_key: str, variant: int) -> int:
    """The 64-bit seed of one row: blake2b, so equal on every platform and in every process."""
    text = canonical_json([base_seed, settings, source_key, variant])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def balanced_quota(num_classes: int, *, per_class: int) -> Labels:
    """The same number of images for every class, int64 (num_classes,)."""
    if not isinstance(per_class, int | np.integer):
        raise TypeError(
            f"`per_class` must be a whole number, got {per_class!r}. Numbers by class are `counts`."
        )
    check_at_least(1, per_class=per_class)
    return np.full(num_classes, per_class, np.int64)


def matching_quota(labels: ArrayLike, num_classes: int, *, ratio: float) -> Labels:
    """`ratio` images per real image with the class proportions of `labels`.

    The total is `round(ratio * len(labels))`; classes get theirs by largest remainder, so each is
    within one image of its exact share.
    """
    if not (ratio > 0 and math.isfinite(ratio)):
        raise ValueError(f"`ratio` must be positive and finite, got {ratio}.")
    indices = np.asarray(labels, np.int64)
    _check_labels(indices, num_classes)
    exact = np.bincount(indices, minlength=num_classes) * ratio
    return largest_remainders(exact, round(ratio * len(indices)))


def _check_labels(labels: Labels, num_classes: int) -> None:
    outside = labels[(labels < 0) | (labels >= num_classes)]
    if len(outside):
        raise ValueError(f"Label {outside[0]} is not one of the {num_classes} classes.")


def largest_remainders(exact: NDArray[np.floating[Any]], total: int) -> Labels:
    """Numbers rounded to whole ones with a given sum, each by less than one, int64 (n,)."""
    whole = np.floor(exact).astype(np.int64)
    missing = total - int(whole.sum())
    whole[np.argsort(whole - exact, kind="stable")[:missing]] += 1
    return whole


def given_quota(counts: Mapping[str, int], classes: Sequence[str]) -> Labels:
    """A number of images for each class name; classes not named get none."""
    unknown = sorted(set(counts) - set(classes))
    if unknown:
        raise ValueError(
            f"`counts` names {unknown[0]!r}, which is not a class. Classes: {', '.join(classes)}."
        )
    negative = sorted(name for name, n in counts.items() if n < 0)
    if negative:
        raise ValueError(
            f"`counts` must not be negative, got {counts[negative[0]]} for {negative[0]!r}."
        )
    return np.array([counts.get(name, 0) for name in classes], np.int64)


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


@dataclass(frozen=True, eq=False)
class Plan:
    """A table with one row per synthetic image.

        plan = synthesizer.plan(per_class=100, seed=0)            # the usual way
        plan = Plan.build(quota, classes=names, settings={}, seed=0)   # for one of your own
        plan[:1000], plan[mask]                                   # a slice is a plan
        plan["label"], plan.row(3)                                # a column; a row as a dict

    Plans are compared by their `digest`.
    """

    columns: Mapping[str, NDArray[Any]]
    """Arrays of equal length: those in `REQUIRED`, and the synthesizer's parameters (float64 or
    int64). `source` is the index of the real image that a row starts from, -1 for none;
    `source_key` the content digest of that image, 0 for none."""
    classes: tuple[str, ...]
    """Names of the classes; `columns["label"]` indexes into them."""
    settings: Mapping[str, Any]
    """What all rows share: the `settings` of the synthesizer's recipe."""
    base_seed: int | None = None
    """What `build` made the seeds from; `None` for rows whose seeds were made otherwise."""

    def __post_init__(self) -> None:
        missing = [name for name in REQUIRED if name not in self.columns]
        if missing:
            raise ValueError(f"`columns` lacks {missing[0]!r}; a plan needs {', '.join(REQUIRED)}.")
        columns = {}
        for name in (*REQUIRED, *sorted(set(self.columns) - set(REQUIRED))):
            column = np.asarray(self.columns[name])
            if column.ndim != 1 or len(column) != len(self.columns["label"]):
                raise ValueError(
                    f"Column {name!r} has shape {column.shape}, expected "
                    f"({len(self.columns['label'])},)."
                )
            default = np.float64 if column.dtype.kind == "f" else np.int64
            column = column.astype(_DTYPES.get(name, default), copy=True)
            if column.dtype == np.float64 and not np.isfinite(column).all():
                raise ValueError(f"Column {name!r} holds a value that is not finite.")
            column.setflags(write=False)
            columns[name] = column
        names = tuple(self.classes)
        check_distinct(classes=names)
        _check_labels(columns["label"], len(names))
        object.__setattr__(self, "columns", columns)
        object.__setattr__(self, "classes", names)
        object.__setattr__(self, "settings", json.loads(canonical_json(self.settings)))

    @classmethod
    def build(
        cls,
        quota: ArrayLike,
        *,
        classes: Sequence[str],
        settings: Mapping[str, Any],
        seed: int,
        sources: Sequence[ArrayLike] | None = None,
        source_keys: ArrayLike | None = None,
        parameters: Mapping[str, float | Sequence[float]] | None = None,
        rows: slice = slice(None),
    ) -> "Plan":
        """Lays out the rows, class by class, and gives each its seed.

        Of a plan that is larger than the memory, `rows` makes a part, and what makes it needs no
        other part: `build(..., rows=slice(a, b))` is `build(...)[a:b]`. So each shard of a job can
        make its own rows, draw them into a cache of its own, and leave the caches to be merged.

        Args:
            quota: Images per class, int (num_classes,).
            classes: Names of the classes.
            settings: What all rows share and the images depend on.
            seed: Base seed.
            sources: Per class the indices of the real images to start from, used in turn until the
                quota is filled; `None` starts every row from noise.
            source_keys: Content digest of every real image, uint64, indexed by source.
            parameters: Further columns. A single value is used in every row. The values of a
                sequence are used in turn: within each class, or with sources within the rows of
                each source, the first rows of neighbouring sources beginning with different values.
            rows: Which rows to make, a slice without a step.

        Raises:
            ValueError: For an empty plan, a quota of the wrong length, a class with a quota but no
                source, a parameter without values, or a slice with a step.
        """
        quota = np.asarray(quota, np.int64)
        if quota.shape != (len(classes),):
            raise ValueError(f"`quota` has shape {quota.shape}, expected ({len(classes)},).")
        if (quota < 0).any():
            raise ValueError(f"`quota` must not be negative, got {quota.min()}.")
        if quota.sum() < 1:
            raise ValueError("The plan is empty: every class has a quota of 0.")
        if (sources is None) != (source_keys is None):
            raise ValueError("`sources` and `source_keys` go together.")
        start, stop, step = rows.indices(int(quota.sum()))
        if step != 1:
            raise ValueError(f"`rows` is {rows}, expected a slice without a step.")
        index, ends = np.arange(start, stop), np.cumsum(quota)
        label = np.searchsorted(ends, index, side="right")
        within = index - (ends - quota)[label]  # position within the class
        columns: dict[str, Any] = {
            "label": label,
            "source": np.full(len(label), -1, np.int64),
            "source_key": np.zeros(len(label), np.uint64),
        }
        variant, turn = within, within
        if sources is not None:
            keys = np.asarray(source_keys, np.uint64)
            source, variant, turn = _sources_in_turn(sources, keys, label, within, quota, classes)
            columns |= {"source": source, "source_key": keys[source]}
        for name, value in (parameters or {}).items():
            columns[name] = _in_turn(name, value, turn)
        columns["variant"] = variant
        columns["seed"] = _seeds(columns, classes, settings, seed)
        return cls(columns=columns, classes=tuple(classes), settings=settings, base_seed=seed)

    def with_settings(self, settings: Mapping[str, Any]) -> "Plan":
        """The same rows for a synthesizer with other settings: other images, so other seeds.

        Raises:
            ValueError: If the seeds were not made by `build`.
        """
        if self.base_seed is None:
            raise ValueError("The seeds of this plan depend on more than its rows.")
        seed = _seeds(self.columns, self.classes, settings, self.base_seed)
        return replace(self, columns={**self.columns, "seed": seed}, settings=settings)

    def with_parameters(
        self,
        parameters: Mapping[str, float | Sequence[float]],
        *,
        settings: Mapping[str, Any],
    ) -> "Plan":
        """The same rows for a synthesizer that wraps the first: other images, so other seeds.

        Args:
            parameters: Further columns, laid out as in `build`.
            settings: Those of the wrapping synthesizer.

        Raises:
            ValueError: As `build`.
        """
        columns = dict(self.columns)
        turn = np.empty(len(self), np.int64)
        for c in range(len(self.classes)):
            rows = np.flatnonzero(self["label"] == c)
            sources = len(set(self["source"][rows].tolist()) - {-1})
            lap, place = np.divmod(np.arange(len(rows)), max(1, sources))
            turn[rows] = lap + place
        for name, value in parameters.items():
            columns[name] = _in_turn(name, value, turn)
        kind, digests = _row_digests(columns, sorted(parameters), settings)
        seeds = zip(self["seed"].tolist(), kind.tolist(), strict=True)
        columns["seed"] = np.array(
            [row_seed(seed, digests[i], "", 0) for seed, i in seeds], np.uint64
        )
        return Plan(columns=columns, classes=self.classes, settings=settings)

    def __len__(self) -> int:
        return len(self.columns["label"])

    def __getitem__(self, rows: Any) -> Any:
        if isinstance(rows, str):
            return self.columns[rows]
        if isinstance(rows, int | np.integer):
            raise TypeError(
                "A plan is indexed by a slice, indices, a mask or a column name; see `row`."
            )
        columns = {name: column[rows] for name, column in self.columns.items()}
        return replace(self, columns=columns)

    def get(self, name: str, default: float) -> NDArray[Any]:
        """A column, or `default` in every row if the plan has none of that name."""
        return self.columns.get(name, np.full(len(self), default))

    def __repr__(self) -> str:
        parameters = [name for name in self.columns if name not in REQUIRED]
        return (
            f"Plan({len(self):,} rows, {len(self.classes)} classes, "
            f"parameters: {', '.join(parameters) or 'none'}, digest: {self.digest[:12]})"
        )

    def _repr_html_(self) -> str:
        """For notebooks: the range of every column, and images of the first classes."""
        from synthaug._support.html import notebook, table

        columns = [
            [name, f"{column.min():,g}", f"{column.max():,g}", f"{len(np.unique(column)):,}"]
            for name, column in self.columns.items()
            if len(column) and name != "seed" and not name.endswith("_key")  # hashes
        ]
        quota = list(zip(self.classes, self.quota.tolist(), strict=True))
        more = f"and {len(quota) - _SHOWN:,} more classes" if len(quota) > _SHOWN else ""
        return notebook(
            repr(self),
            table(["column", "smallest", "largest", "values"], columns),
            table(["class", "images"], quota[:_SHOWN]),
            *([more] if more else []),
        )

    def row(self, index: int) -> dict[str, int | float]:
        """Row `index` as a dict of Python numbers."""
        return {name: column[index].item() for name, column in self.columns.items()}

    def batches(self, batch_size: int) -> Iterator["Plan"]:
        """The plan in slices of `batch_size` rows, the last one possibly shorter."""
        for start in range(0, len(self), batch_size):
            yield self[start : start + batch_size]

    @property
    def quota(self) -> Labels:
        """Images per class, int64 (num_classes,)."""
        return np.bincount(self.columns["label"], minlength=len(self.classes))

    @property
    def digest(self) -> str:
        """32 hexadecimal digits over every column, the class names and the settings."""
        hashed = hashlib.blake2b(digest_size=16)
        hashed.update(canonical_json([list(self.classes), dict(self.settings)]).encode())
        for name, column in self.columns.items():  # __post_init__ fixed the order and the dtypes
            hashed.update(f"{name}:{column.dtype.str}:{len(column)}".encode())
            hashed.update(column.tobytes())
        return hashed.hexdigest()


def _in_turn(
    name: str, value: float | Sequence[float], turn: NDArray[np.int64]
) -> NDArray[np.float64]:
    """A parameter's column: row i has value number `turn[i]`, counted round."""
    if name in REQUIRED:
        raise ValueError(f"Parameter {name!r} has the name of a column that every plan has.")
    values = np.atleast_1d(np.asarray(value))
    if values.ndim != 1 or not len(values):
        raise ValueError(f"Parameter {name!r} must be a number or a list, got {value!r}.")
    if not np.isfinite(values).all():
        raise ValueError(f"Parameter {name!r} holds a value that is not finite: {value!r}.")
    return values[turn % len(values)]


def _sources_in_turn(
    sources: Sequence[ArrayLike],
    keys: NDArray[np.uint64],
    label: Labels,
    within: NDArray[np.int64],
    quota: Labels,
    classes: Sequence[str],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The source of every row, its variant, and its turn among the values of parameters.

    Args:
        sources: Per class the indices of the real images to start from.
        keys: Content digest of every real image.
        label: Class of every row, ascending.
        within: Position of every row within its class.
        quota: Images per class.
        classes: Names of the classes.
    """
    source, variant, turn = (np.full(len(label), -1, np.int64) for _ in range(3))
    for c, n in enumerate(quota):
        pool = np.asarray(sources[c], np.int64)
        if n and not len(pool):
            raise ValueError(
                f"Class {classes[c]!r} has a quota of {n} but no real image to start from."
            )
        rows = slice(*np.searchsorted(label, [c, c + 1]))
        if rows.start < rows.stop:
            lap, place = np.divmod(within[rows], len(pool))
            source[rows] = pool[place]
            # Shifted by the place, or a quota below the pool's size would see one value.
            turn[rows] = lap + place
            # Counted by content and not by index, so that two equal images in a data set do not
            # get equal variants.
            before, copies = _equal_before(keys[pool])
            variant[rows] = lap * copies[place] + before[place]
    return source, variant, turn


def _equal_before(keys: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each key how many before it are equal, and how many are equal in all."""
    _, group, counts = np.unique(keys, return_inverse=True, return_counts=True)
    order = np.argsort(group, kind="stable")
    before = np.empty(len(keys), np.int64)
    before[order] = np.arange(len(keys)) - np.repeat(np.cumsum(counts) - counts, counts)
    return before, counts[group]


def _row_digests(
    columns: Mapping[str, NDArray[Any]], parameters: Sequence[str], settings: Mapping[str, Any]
) -> tuple[NDArray[np.int64], list[str]]:
    """Which combination of parameters each row has, (n,), and a digest for each combination."""
    if not parameters:
        digest = settings_digest({"settings": dict(settings), "row": {}})
        return np.zeros(len(columns["label"]), np.int64), [digest]
    table = np.stack([columns[name] for name in parameters], axis=1)
    different, kind = np.unique(table, axis=0, return_inverse=True)
    rows = (dict(zip(parameters, row, strict=True)) for row in different.tolist())
    digests = [settings_digest({"settings": dict(settings), "row": row}) for row in rows]
    return kind.ravel(), digests


def _seeds(
    columns: Mapping[str, NDArray[Any]],
    classes: Sequence[str],
    settings: Mapping[str, Any],
    seed: int,
) -> NDArray[np.uint64]:
    """The `row_seed` of every row; what neighbouring rows share is hashed once."""
    kind, digests = _row_digests(columns, sorted(set(columns) - set(REQUIRED)), settings)
    names = ("label", "source", "source_key", "variant")
    begun: dict[tuple[int, int, int], Any] = {}
    hashes = []
    for i, label, source, key, variant in zip(
        kind.tolist(), *(columns[name].tolist() for name in names), strict=True
    ):
        shared = (i, label, key if source >= 0 else -1)
        if shared not in begun:
            name = f"class:{classes[label]}"
            if source >= 0:
                name = f"image:{key:016x}:{classes[label]}"
            text = canonical_json([seed, digests[i], name])
            begun[shared] = hashlib.blake2b(f"{text[:-1]},".encode(), digest_size=8)
        hashed = begun[shared].copy()
        hashed.update(b"%d]" % variant)
        hashes.append(hashed.digest())
    return np.frombuffer(b"".join(hashes), "<u8").astype(np.uint64)
