"""Chooses the synthetic image, if any, that each index gives in an epoch.

The choices of a whole epoch are drawn at once into a table, by each process for itself, the first
time it sees the epoch; the table is a pure function of the arguments and the epoch. So it does not
matter how many workers there are, how they were started, or in which order they are asked; and a
choice costs one array access instead of a generator object.
"""

import hashlib
from functools import partial
from typing import Literal, final

import numpy as np

from synthaug._datasets.draws import Draw
from synthaug._datasets.fractions import Filled, Shares
from synthaug._noise import counter_rng
from synthaug._types import Indices, Labels

# Streams of random numbers; no two uses share one. 3 and 4 are those of the samplers.
_WHICH, _SHUFFLE, _DECK, _SERVED = 0, 1, 2, 5

Mode = Literal["replace", "append"]


@final
class Choices:
    """Tables of rows of the cache, -1 for a real image, one per epoch."""

    def __init__(
        self,
        labels: Labels,
        rows: list[Indices],
        *,
        shares: Shares | Filled,
        draw: Draw,
        seed: int,
        mode: Mode,
    ) -> None:
        """Sorts both sides by class.

        Args:
            labels: Labels of the real images.
            rows: Rows of the cache that are served, of each class, ascending.
            shares: Probability of a replacement, or number of appended images, by class and epoch.
            draw: How to draw within a class.
            seed: Seed of all draws.
            mode: "replace" or "append".
        """
        self._labels, self._shares, self._draw = labels, shares, draw
        self._seed, self._mode, self._num_classes = seed, mode, len(rows)
        self.pools = [draw.arranged(of_class) for of_class in rows]
        self._by_class = np.argsort(labels, kind="stable")
        self._before: list[Labels] = [np.zeros(len(rows), np.int64)]
        self._table: tuple[int, Indices] | None = None
        self._quota: tuple[int, Labels] | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_table": None}  # cheaper to draw again than to send

    def digest(self) -> str:
        """32 hexadecimal digits over the rows that can be drawn, and how often."""
        hashed = hashlib.blake2b(np.concatenate(self.pools).tobytes(), digest_size=16)
        if self._draw.weights is not None:
            hashed.update(self._draw.weights.tobytes())
        return hashed.hexdigest()

    def rows(self, epoch: int) -> Indices:
        """The row that every index gives, int64, not to be written to."""
        if self._table is None or self._table[0] != epoch:
            rows = self._replaced(epoch) if self._mode == "replace" else self._appended(epoch)
            rows.setflags(write=False)
            self._table = epoch, rows
        return self._table[1]

    def quota(self, epoch: int) -> Labels:
        """Synthetic images that an epoch appends, of each class, int64 (num_classes,)."""
        if not self._shares.scheduled:
            epoch = 0
        if self._quota is None or self._quota[0] != epoch:
            self._quota = epoch, self._shares.quota(epoch)
        return self._quota[1]

    def _replaced(self, epoch: int) -> Indices:
        assert isinstance(self._shares, Shares)
        share = self._shares.at(epoch)[self._labels]
        replaced = counter_rng(self._seed, _WHICH, epoch).random(len(self._labels)) < share
        rows = np.full(len(self._labels), -1, np.int64)
        members = self._by_class[replaced[self._by_class]]  # sorted by class
        counts = np.bincount(self._labels[members], minlength=self._num_classes)
        for c, part in enumerate(np.split(members, np.cumsum(counts)[:-1])):
            if len(part):
                rng = counter_rng(self._seed, _SHUFFLE, epoch, c)
                rows[part] = self._draw.for_epoch(rng, self.pools[c], len(part))
        if self._draw.served is not None:
            chance = counter_rng(self._seed, _SERVED, epoch).random(len(rows))
            rows[chance >= self._draw.served[rows]] = -1  # of real images it is -1 already
        return rows

    def _appended(self, epoch: int) -> Indices:
        parts = [np.full(len(self._labels), -1, np.int64)]
        before = self._drawn_before(epoch)
        for c, count in enumerate(self.quota(epoch).tolist()):
            rng = partial(counter_rng, self._seed, _DECK, c)
            if count and isinstance(self._shares, Filled):  # no image twice in an epoch
                parts.append(self._draw.for_epoch(rng(epoch), self.pools[c], count))
            elif count:
                parts.append(self._draw.from_stream(rng, self.pools[c], int(before[c]), count))
        return np.concatenate(parts)

    def _drawn_before(self, epoch: int) -> Labels:
        """Images of each class that all earlier epochs append."""
        if not self._shares.scheduled:
            return epoch * self.quota(epoch)
        while len(self._before) <= epoch:
            self._before.append(self._before[-1] + self.quota(len(self._before) - 1))
        return self._before[epoch]
