"""Values of a report's rows, which of a large cache are kept for the judged ones alone."""

from collections.abc import Callable
from typing import Any, TypeVar, final

import numpy as np
from numpy.typing import NDArray

from synthaug._types import Indices

_DENSE = 2**20
"""Rows up to which a value is kept for every one."""


@final
class Spread:
    """An array with a value for every row, made when it is asked for: most have none.

    Args:
        values: Values of the rows that have one, (n, ...).
        rows: Their numbers, ascending, (n,).
        total: Rows in all.
        missing: The value of all others.
    """

    def __init__(self, values: NDArray[Any], rows: Indices, total: int, missing: Any) -> None:
        self.values, self.rows, self.total, self.missing = values, rows, total, missing

    def __len__(self) -> int:
        return self.total

    def dense(self) -> NDArray[Any]:
        """The array, (total, ...)."""
        spread = np.full((self.total, *self.values.shape[1:]), self.missing, self.values.dtype)
        spread[self.rows] = self.values
        return spread

    def at(self, rows: Indices) -> NDArray[Any]:
        """The values of some rows, (k, ...)."""
        chosen = np.full((len(rows), *self.values.shape[1:]), self.missing, self.values.dtype)
        kept = np.isin(rows, self.rows)
        chosen[kept] = self.values[np.searchsorted(self.rows, rows[kept])]
        return chosen


def whole(value: Any) -> NDArray[Any]:
    """The array with a value for every row, of a field that may be a `Spread`."""
    dense: NDArray[Any] = value.dense() if isinstance(value, Spread) else value
    return dense


@final
class Places:
    """Where the ranked rows stand among all rows.

    Args:
        rows: Row number of each ranked row, in any order, (n,).
        total: Rows in all.
    """

    def __init__(self, rows: Indices, total: int) -> None:
        self.order = np.argsort(rows)
        self.rows, self.total = rows[self.order], total

    @property
    def keeps_all(self) -> bool:
        """Whether a value is kept for every row, since there are few."""
        return self.total <= _DENSE

    def spread(self, values: NDArray[Any], missing: Any = np.nan) -> Any:
        """Values of the ranked rows at their places, for a field that is `spreading`.

        Args:
            values: One for each ranked row.
            missing: Value for all other places.
        """
        kept = Spread(values[self.order], self.rows, self.total, missing)
        return kept.dense() if self.keeps_all else kept


Kind = TypeVar("Kind")


def spreading(*names: str) -> Callable[[type[Kind]], type[Kind]]:
    """Makes fields of a dataclass give the whole array where they were set to a `Spread`."""

    def changed(kind: type[Kind]) -> type[Kind]:
        for name in names:
            setattr(kind, name, _Spreading(name))
        return kind

    return changed


@final
class _Spreading:
    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, report: Any, owner: type) -> NDArray[Any]:
        return whole(vars(report)[self._name])

    def __set__(self, report: Any, value: Any) -> None:
        vars(report)[self._name] = value
