"""Chooses the rows of a plan for an epoch: a pure function of the plan, the seed and the epoch."""

from collections.abc import Sequence
from typing import final

import numpy as np

from synthaug._datasets.draws import shuffled
from synthaug._noise import counter_rng
from synthaug._plan import matching_quota
from synthaug._support.rows import rows_by_class
from synthaug._types import Indices, Labels

# Streams of random numbers; no two uses share one.
_SLOTS, _DECK, _ORDER = 0, 1, 2


@final
class Pool:
    """Slots for images, whose rows are exchanged from epoch to epoch.

    A class with n rows and m slots is dealt its rows in random order: slot j has the rows j, j + m,
    j + 2 m, ... of the deck, each for `reuse` epochs. Slots take turns, so that each epoch
    exchanges 1 / `reuse` of them. So no row is in two slots, and none returns before its slot has
    had all of its rows. Which slots of its class an index shows is shuffled in every epoch.
    """

    def __init__(
        self,
        rows: Indices,
        labels: Labels,
        classes: Sequence[str],
        *,
        size: int | None,
        reuse: int,
        seed: int,
    ) -> None:
        """Deals the rows.

        Args:
            rows: Rows that may be served.
            labels: Their classes.
            classes: Names of the classes.
            size: Slots; as many as rows by default.
            reuse: Epochs for which a row stays in its slot.
            seed: Seed of the choices.

        Raises:
            ValueError: If there are more slots than rows, or none for a class that has rows.
        """
        if not len(rows):
            raise ValueError(
                "`plan` has no row that may be served: all are withdrawn, or did not pass. "
                "Make another plan."
            )
        if size is not None and size > len(rows):
            raise ValueError(
                f"`size` is {size}, but the plan has {len(rows)} rows that may be served. Plan "
                "more rows; those that are not drawn cost nothing."
            )
        share = 1.0 if size is None else size / len(rows)
        quota = matching_quota(labels, len(classes), ratio=share)
        without = np.setdiff1d(labels, np.flatnonzero(quota))
        if len(without):
            raise ValueError(
                f"`size` is {size}, which leaves no image of class {classes[without[0]]!r}. Make "
                "it larger, or the plan balanced."
            )
        self.reuse, self.seed = reuse, seed
        self.labels: Labels = shuffled(
            counter_rng(seed, _SLOTS), np.repeat(np.arange(len(quota)), quota)
        )
        """Class of each index, int64 (size,)."""
        self.labels.setflags(write=False)
        self._classes = np.unique(labels).tolist()
        places = rows_by_class(np.arange(len(self.labels)), self.labels, len(quota))
        of_class = rows_by_class(rows, labels, len(quota))
        self._indices = [places[c] for c in self._classes]
        self._decks = [shuffled(counter_rng(seed, _DECK, c), of_class[c]) for c in self._classes]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def max_exchanged(self) -> int:
        """Most rows that one epoch exchanges."""
        return sum(-(-len(indices) // self.reuse) for indices in self._indices)

    def rows(self, epoch: int) -> Indices:
        """The row of each index, int64 (size,)."""
        rows = np.empty(len(self.labels), np.int64)
        for c, indices, deck in zip(self._classes, self._indices, self._decks, strict=True):
            m = len(indices)
            slot = np.arange(m)
            exchanges = (epoch + slot % self.reuse) // self.reuse  # of each slot, up to this epoch
            dealt = -(-(len(deck) - slot) // m)  # rows of each slot
            current = deck[slot + m * (exchanges % dealt)]
            rows[indices] = shuffled(counter_rng(self.seed, _ORDER, epoch, c), current)
        rows.setflags(write=False)
        return rows
