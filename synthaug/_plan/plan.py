"""The plan: a table with one row per synthetic image, complete before any image is made.

Knowing every row first makes a job reproducible (an image is a pure function of weights, settings
and its row), resumable (what is left are the rows not yet done), shardable (a slice is a plan),
estimable, and auditable (the provenance of an image is its row).
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from synthaug._noise import checked_seed
from synthaug._plan import rows as _rows
from synthaug._plan.layout import (
    Layout,
    Parameter,
    Seeded,
    SourcesInTurn,
    in_turn,
    row_digests,
    row_seed,
)
from synthaug._plan.quota import check_labels
from synthaug._plan.rows import (
    DTYPES,
    REQUIRED,
    AbstractRows,
    Columns,
    Held,
    Joined,
    Picked,
    canonical_order,
    chosen_rows,
    column_dtype,
)
from synthaug._plan.text import canonical_json
from synthaug._support.arguments import check_distinct, check_whole
from synthaug._support.names import class_names
from synthaug._support.rows import row_numbers, whole_numbers
from synthaug._types import Array, Labels

_SHOWN = 12  # classes in a notebook
_COUNTED = 10**6  # different values of a column in a notebook


@dataclass(frozen=True, eq=False)
class Plan:
    """A table with one row per synthetic image.

        plan = synthesizer.plan(per_class=100, seed=0)            # the usual way
        plan = Plan.build(quota, classes=names, settings={}, seed=0)   # for one of your own
        plan[:1000], plan[mask]                                   # a slice is a plan
        plan["label"], plan.row(3)                                # a column; a row as a dict

    A plan of more than 1.5 million rows or so is not kept in memory: its rows are read from the
    cache that has them, or computed, when they are asked for. There `plan[rows]["label"]` and
    `plan.row(i)` cost what those rows cost, and `plan["label"]` 8 bytes for each of all rows.

    Plans are compared by their `digest`.
    """

    columns: Mapping[str, Array]
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
        names = class_names(self.classes)
        if not isinstance(self.columns, Columns):
            object.__setattr__(self, "columns", _kept(self.columns, len(names)))
        check_distinct(classes=names)
        object.__setattr__(self, "classes", names)
        object.__setattr__(self, "settings", json.loads(canonical_json(self.settings)))

    @classmethod
    def of_rows(
        cls,
        rows: AbstractRows,
        classes: Sequence[str],
        settings: Mapping[str, Any],
        base_seed: int | None = None,
    ) -> "Plan":
        """A plan of rows that are somewhere else, kept in memory if they are few."""
        columns: Mapping[str, Array] = Columns(rows)
        if rows.nbytes <= _rows.KEPT:
            columns = rows.read(list(columns), range(len(rows)))
        return cls(columns, tuple(classes), settings, base_seed)

    @classmethod
    def joined(cls, plans: "Sequence[Plan]") -> "Plan":
        """The rows of plans of equal columns, classes and settings, one plan behind the other."""
        rows = Joined([plan.rows for plan in plans])
        return cls.of_rows(rows, plans[0].classes, plans[0].settings)

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
        parameters: Mapping[str, Parameter] | None = None,
        rows: slice = slice(None),
    ) -> "Plan":
        """Lays out the rows, class by class, and gives each its seed.

        Of a plan that is larger than the memory, `rows` makes a part, and what makes it needs no
        other part: `build(..., rows=slice(a, b))` is `build(...)[a:b]`. So each shard of a job can
        make its own rows, draw them into a cache of its own, and leave the caches to be merged.

        Args:
            quota: Images per class, int (num_classes,).
            classes: Names of the classes.
            settings: Settings that all rows share and the images depend on.
            seed: Base seed.
            sources: Per class the indices of the real images to start from, used in turn until the
                quota is filled; `None` starts every row from noise.
            source_keys: Content digest of every real image, uint64, indexed by source.
            parameters: Further columns. A single value is used in every row. The values of a
                sequence are used in turn: within each class, or with sources within the rows of
                each source, the first rows of neighboring sources beginning with different values.
                An `InTurnByClass` gives each class numbers of its own.
            rows: The rows to make, a slice without a step.

        Raises:
            TypeError: For a seed or a quota that is no whole number.
            ValueError: For an empty plan, a quota of the wrong length, a class with a quota but no
                source, a parameter without values, or a slice with a step.
        """
        seed, classes = checked_seed(seed), class_names(classes)
        if np.shape(quota) != (len(classes),):
            raise ValueError(f"`quota` has shape {np.shape(quota)}, expected ({len(classes)},).")
        quota = whole_numbers(quota, "quota")
        if (quota < 0).any():
            raise ValueError(f"`quota` must not be negative, got {quota.min()}.")
        if quota.sum() < 1:
            raise ValueError("The plan is empty: every class has a quota of 0.")
        if (sources is None) != (source_keys is None):
            raise ValueError("`sources` and `source_keys` go together.")
        start, stop, step = rows.indices(int(quota.sum()))
        if step != 1:
            raise ValueError(f"`rows` is {rows}, expected a slice without a step.")
        turns = None
        if sources is not None and source_keys is not None:
            turns = SourcesInTurn(sources, source_keys, quota, classes)
        laid_out: AbstractRows = Layout(quota, turns, parameters or {})
        if len(range(start, stop)) < len(laid_out):
            laid_out = Picked(laid_out, range(start, stop))
        seeded = Seeded(laid_out, classes, settings, seed)
        return cls.of_rows(seeded, classes, settings, base_seed=seed)

    def with_settings(self, settings: Mapping[str, Any]) -> "Plan":
        """The same rows for a synthesizer with other settings: other images, so other seeds.

        Raises:
            ValueError: If the seeds were not made by `build`.
        """
        if self.base_seed is None:
            raise ValueError("The seeds of this plan depend on more than its rows.")
        seeded = Seeded(self.rows, self.classes, settings, self.base_seed)
        return Plan.of_rows(seeded, self.classes, settings, self.base_seed)

    def with_parameters(
        self, parameters: Mapping[str, float | Sequence[float]], *, settings: Mapping[str, Any]
    ) -> "Plan":
        """The same rows for a synthesizer that wraps the first: other images, so other seeds.

        Args:
            parameters: Further columns, laid out as in `build`.
            settings: The settings of the wrapping synthesizer.

        Raises:
            ValueError: Under the same conditions as `build`.
        """
        columns = dict(self.columns)
        turn = np.empty(len(self), np.int64)
        for c in range(len(self.classes)):
            rows = np.flatnonzero(columns["label"] == c)
            sources = len(set(columns["source"][rows].tolist()) - {-1})
            lap, place = np.divmod(np.arange(len(rows)), max(1, sources))
            turn[rows] = lap + place
        for name, value in parameters.items():
            columns[name] = in_turn(name, value, turn)
        kind, digests = row_digests(columns, sorted(parameters), settings)
        seeds = zip(columns["seed"].tolist(), kind.tolist(), strict=True)
        columns["seed"] = np.array(
            [row_seed(seed, digests[i], "", 0) for seed, i in seeds], np.uint64
        )
        return Plan(columns=columns, classes=self.classes, settings=settings)

    @property
    def rows(self) -> AbstractRows:
        """The rows, of which any few can be had without the others."""
        return self.columns.rows if isinstance(self.columns, Columns) else Held(self.columns)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Any) -> Any:
        if isinstance(rows, str):
            return self.columns[rows]
        if isinstance(rows, int | np.integer):
            raise TypeError(
                "A plan is indexed by a slice, indices, a mask or a column name; see `row`."
            )
        if isinstance(self.columns, Columns):
            chosen = Picked(self.rows, chosen_rows(rows, len(self)))
            return Plan.of_rows(chosen, self.classes, self.settings, self.base_seed)
        rows = rows if isinstance(rows, slice) else row_numbers(rows, len(self), "rows")
        columns = {name: column[rows] for name, column in self.columns.items()}
        return replace(self, columns=columns)

    def at(self, name: str, rows: ArrayLike | slice) -> Array:
        """One column at some rows, which are named as in `plan[rows]`."""
        return self.rows.read([name], chosen_rows(rows, len(self)))[name]

    def pieces(self, name: str) -> Iterator[tuple[int, Array]]:
        """A column in order, a few rows at a time, each piece with the number of its first row."""
        return self.rows.pieces(name)

    def get(self, name: str, default: float) -> Array:
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
            [name, *(f"{bound:,g}" for bound in self.bounds(name)), self._distinct(name)]
            for name in self.columns
            if len(self) and name != "seed" and not name.endswith("_key")  # hashes
        ]
        quota = list(zip(self.classes, self.quota.tolist(), strict=True))
        more = f"and {len(quota) - _SHOWN:,} more classes" if len(quota) > _SHOWN else ""
        return notebook(
            repr(self),
            table(["column", "smallest", "largest", "values"], columns),
            table(["class", "images"], quota[:_SHOWN]),
            *([more] if more else []),
        )

    def bounds(self, name: str) -> tuple[float, float]:
        """The smallest and the largest value of a column, Python numbers."""
        bounds = [(piece.min(), piece.max()) for _, piece in self.pieces(name)]
        lows, highs = zip(*bounds, strict=True)
        return min(lows).item(), max(highs).item()

    def _distinct(self, name: str) -> str:
        """How many different values a column has, for people."""
        values = np.empty(0)
        for _, piece in self.pieces(name):
            values = np.union1d(values, piece)
            if len(values) > _COUNTED:
                return f"over {_COUNTED:,}"
        return f"{len(values):,}"

    def row(self, index: int) -> dict[str, int | float]:
        """Row `index` as a dict of Python numbers."""
        row = self.rows.read(list(self.columns), chosen_rows([index], len(self)))
        return {name: column[0].item() for name, column in row.items()}

    def batches(self, batch_size: int) -> Iterator["Plan"]:
        """The plan in slices of `batch_size` rows, the last one possibly shorter."""
        check_whole(1, batch_size=batch_size)
        for start in range(0, len(self), batch_size):
            yield self[start : start + batch_size]

    @property
    def quota(self) -> Labels:
        """Images per class, int64 (num_classes,)."""
        quota = np.zeros(len(self.classes), np.int64)
        for _, labels in self.pieces("label"):
            quota += np.bincount(labels, minlength=len(quota))
        return quota

    @cached_property
    def digest(self) -> str:
        """32 hexadecimal digits over every column, the class names and the settings."""
        return self.visited(lambda name, start, piece: None)

    def visited(self, visit: Callable[[str, int, Array], object]) -> str:
        """The digest, after each column was handed to `visit`, a few rows at a time, in order: with
        its name, the number of the first row, and the values."""
        hashed = hashlib.blake2b(digest_size=16)
        hashed.update(canonical_json([list(self.classes), dict(self.settings)]).encode())
        for name in self.columns:  # their order is the same for equal plans
            dtype = DTYPES.get(name, np.dtype(np.float64))
            hashed.update(f"{name}:{dtype.str}:{len(self)}".encode())
            for start, piece in self.pieces(name):
                visit(name, start, piece)
                hashed.update(_hashable(piece, dtype).data)
        digest = vars(self)["digest"] = hashed.hexdigest()  # known from now on
        return digest


def _hashable(piece: Array, dtype: np.dtype[Any]) -> Array:
    """Values of a column as they are hashed, so that 2 and 2.0, or 0.0 and -0.0, are one value."""
    values = piece.astype(dtype, copy=False)
    if piece.dtype.kind == "f":
        values = values + 0.0  # makes -0.0 to 0.0
    elif dtype.kind == "f":
        # Compared as whole numbers: as float64, a number that no float64 is seems to be one.
        within = np.abs(values) < 2.0**63
        if not within.all() or (values.astype(piece.dtype) != piece).any():
            values = piece
    return np.ascontiguousarray(values)


def _kept(columns: Mapping[str, Array], num_classes: int) -> dict[str, Array]:
    """Copies of the columns of a plan, in order, that cannot be changed; a ValueError if they
    differ in length, or hold what no plan may hold."""
    kept = {}
    for name in canonical_order(columns):
        column = np.asarray(columns[name])
        if column.ndim != 1 or len(column) != len(columns["label"]):
            raise ValueError(
                f"Column {name!r} has shape {column.shape}, expected ({len(columns['label'])},)."
            )
        column = column.astype(column_dtype(name, column), copy=True)
        check_values(name, column, num_classes)
        column.setflags(write=False)
        kept[name] = column
    return kept


def check_values(name: str, values: Array, num_classes: int) -> None:
    """Refuses labels of no class and values that are not finite with a ValueError."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError(f"Column {name!r} holds a value that is not finite.")
    if name == "label":
        check_labels(values, num_classes)
