"""Rows that follow from a quota: computed when they are asked for, and their seeds."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import numpy as np
from numpy.typing import ArrayLike

from synthaug._plan.rows import DTYPES, REQUIRED, AbstractRows, Selection, column_dtype, numbers
from synthaug._plan.text import canonical_json, settings_digest
from synthaug._support.rows import whole_numbers
from synthaug._types import Array, Doubles, ImageShape, Indices, Integers, Labels, Unsigned


def row_seed(base_seed: int, settings: str, source_key: str, variant: int) -> int:
    """The 64-bit seed of one row: blake2b, so equal on every platform and in every process."""
    text = canonical_json([base_seed, settings, source_key, variant])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


@final
@dataclass(frozen=True)
class InTurnByClass:
    """A column of whole numbers of which each class has its own: `starts[c]` and those behind it.

    The rows of a class take them in turn, and not in step with other columns: if guidance scales
    and prompts both take turns, every prompt meets every scale.
    """

    starts: Integers
    """Smallest number of every class, (num_classes,)."""
    counts: Integers
    """How many numbers every class has, (num_classes,)."""

    def at(self, label: Labels, turn: Indices, cycle: Labels) -> Integers:
        """The numbers of rows, (n,).

        Args:
            label: Class of every row, (n,).
            turn: Turn of every row among the values of parameters, (n,).
            cycle: Rows of a class after which the other columns begin anew, (num_classes,).
        """
        together = np.lcm(self.counts, cycle)
        in_step = together < self.counts * cycle
        laps = np.where(in_step[label], turn // together[label], 0)
        return self.starts[label] + (turn + laps) % self.counts[label]


Parameter: TypeAlias = float | Sequence[float] | InTurnByClass
"""One value, values that rows take in turn, or numbers of which each class has its own."""


@final
class Layout(AbstractRows):
    """Rows class by class; a row's columns follow from its number, all but the seed."""

    def __init__(
        self, quota: Labels, sources: "SourcesInTurn | None", parameters: Mapping[str, Parameter]
    ) -> None:
        """Takes what `Plan.build` was given; arguments as there."""
        self._ends = np.cumsum(quota)
        self._starts = self._ends - quota
        self._sources = sources
        self._by_class = {
            name: value for name, value in parameters.items() if isinstance(value, InTurnByClass)
        }
        self._values = {
            name: _values_in_turn(name, value)
            for name, value in parameters.items()
            if not isinstance(value, InTurnByClass)
        }
        self.dtypes = {name: dtype for name, dtype in DTYPES.items() if name != "seed"}
        self.dtypes |= {name: column_dtype(name, value) for name, value in self._values.items()}
        self.dtypes |= {name: np.dtype(np.int64) for name in self._by_class}

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, names: Sequence[str], rows: Selection) -> dict[str, Array]:
        index = numbers(rows)
        label = np.searchsorted(self._ends, index, side="right")
        if list(names) == ["label"]:
            return {"label": label}
        within = index - self._starts[label]  # position within the class
        variant, turn = within, within
        columns: dict[str, Array] = {"label": label}
        if self._sources is not None:
            source, key, variant, turn = self._sources.at(label, within)
            columns |= {"source": source, "source_key": key}
        elif "source" in names or "source_key" in names:
            columns["source"] = np.full(len(label), -1, np.int64)
            columns["source_key"] = np.zeros(len(label), np.uint64)
        columns["variant"] = variant
        for name in self._values.keys() & {*names}:
            columns[name] = self._values[name][turn % len(self._values[name])]
        cycle = np.full(len(self._ends), math.lcm(*map(len, self._values.values())))
        for name, numbers_of in self._by_class.items():
            if name in names:
                columns[name] = numbers_of.at(label, turn, cycle)
            cycle = cycle * numbers_of.counts
        return {name: columns[name] for name in names}


@final
class SourcesInTurn:
    """The real images of every class, used in turn until its quota is filled."""

    def __init__(
        self,
        sources: Sequence[ArrayLike],
        source_keys: ArrayLike,
        quota: Labels,
        classes: Sequence[str],
    ) -> None:
        """Puts the images of all classes one behind the other; arguments as of `Plan.build`.

        Raises:
            ValueError: A class has a quota and no image, or `sources` is for other classes.
        """
        if len(sources) != len(quota):
            raise ValueError(f"`sources` is for {len(sources)} classes, expected {len(quota)}.")
        pools = [whole_numbers(pool, "sources") for pool in sources]
        self._sizes = np.array([len(pool) for pool in pools], np.int64)
        lacking = np.flatnonzero((quota > 0) & (self._sizes == 0))
        if len(lacking):
            raise ValueError(
                f"Class {classes[lacking[0]]!r} has a quota of {quota[lacking[0]]} but no real "
                "image to start from."
            )
        self._starts = np.cumsum(self._sizes) - self._sizes
        self._source = np.concatenate(pools)
        self._key = np.asarray(source_keys, np.uint64)[self._source]
        of_class = np.repeat(np.arange(len(pools)), self._sizes)
        self._before, self._copies = _equal_before(of_class, self._key)

    def at(self, label: Labels, within: Indices) -> tuple[Indices, Unsigned, Integers, Integers]:
        """Source, its key, variant, and turn among the values of parameters, each (n,).

        Args:
            label: Class of every row, (n,).
            within: Position of every row within its class, (n,).
        """
        lap, place = np.divmod(within, self._sizes[label])
        image = self._starts[label] + place
        # Counted by content and not by index, so that two equal images in a data set do not
        # get equal variants.
        variant = lap * self._copies[image] + self._before[image]
        # The turn is shifted by the place, or a quota below the pool's size would see one value.
        return self._source[image], self._key[image], variant, lap + place


def _equal_before(of_class: Labels, keys: Unsigned) -> tuple[Integers, Integers]:
    """For each image how many before it in its class are equal, and how many are in all."""
    order = np.lexsort((keys, of_class))  # stable: equal ones stay in their order
    ordered, ordered_class = keys[order], of_class[order]
    new = (ordered[1:] != ordered[:-1]) | (ordered_class[1:] != ordered_class[:-1])
    group = np.concatenate([np.zeros(min(1, len(keys)), np.int64), np.cumsum(new)])
    counts = np.bincount(group)
    before, copies = np.empty(len(keys), np.int64), np.empty(len(keys), np.int64)
    before[order] = np.arange(len(keys)) - np.repeat(np.cumsum(counts) - counts, counts)
    copies[order] = counts[group]
    return before, copies


def _values_in_turn(name: str, value: float | Sequence[float]) -> Array:
    """The values of a parameter, (n,), which rows use in turn; a ValueError if there are none, one
    is not finite, or the name is taken."""
    if name in REQUIRED:
        raise ValueError(f"Parameter {name!r} has the name of a column that every plan has.")
    values = np.atleast_1d(np.asarray(value))
    if values.ndim != 1 or not len(values) or values.dtype.kind not in "biuf":
        raise ValueError(f"Parameter {name!r} must be a number or a list of them, got {value!r}.")
    if not np.isfinite(values).all():
        raise ValueError(f"Parameter {name!r} holds a value that is not finite: {value!r}.")
    return values.astype(column_dtype(name, values))


def in_turn(name: str, value: float | Sequence[float], turn: Integers) -> Doubles:
    """A parameter's column: row i has value number `turn[i]`, counted round."""
    values = _values_in_turn(name, value)
    return values[turn % len(values)]


@final
class Seeded(AbstractRows):
    """Rows with the seeds that follow from their other columns."""

    def __init__(
        self, rows: AbstractRows, classes: Sequence[str], settings: Mapping[str, Any], seed: int
    ) -> None:
        self._rows, self._classes = rows, tuple(classes)
        self._settings, self._seed = settings, seed
        self.dtypes = {**rows.dtypes, "seed": DTYPES["seed"]}

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, names: Sequence[str], rows: Selection) -> dict[str, Array]:
        if "seed" in names:
            columns = self._rows.read([name for name in self.dtypes if name != "seed"], rows)
            columns["seed"] = seeds_of(columns, self._classes, self._settings, self._seed)
        else:
            columns = self._rows.read(names, rows)
        return {name: columns[name].astype(self.dtypes[name], copy=False) for name in names}


def row_digests(
    columns: Mapping[str, Array], parameters: Sequence[str], settings: Mapping[str, Any]
) -> tuple[Integers, list[str]]:
    """Returns the number of each row's combination of parameters, (n,), and a digest of each
    combination.
    """
    if not parameters:
        digest = settings_digest({"settings": dict(settings), "row": {}})
        return np.zeros(len(columns["label"]), np.int64), [digest]
    table = np.stack([columns[name] for name in parameters], axis=1)
    different, kind = np.unique(table, axis=0, return_inverse=True)
    rows = (dict(zip(parameters, row, strict=True)) for row in different.tolist())
    digests = [settings_digest({"settings": dict(settings), "row": row}) for row in rows]
    return kind.ravel(), digests


def seeds_of(
    columns: Mapping[str, Array], classes: Sequence[str], settings: Mapping[str, Any], seed: int
) -> Unsigned:
    """The `row_seed` of every row; what neighboring rows share is hashed once."""
    kind, digests = row_digests(columns, sorted({*columns} - {*REQUIRED}), settings)
    names = ("label", "source", "source_key", "variant")
    begun: dict[ImageShape, Any] = {}
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
