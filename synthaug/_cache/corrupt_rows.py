"""Rows whose bytes are not those that were written: what is said of them, and what takes their
place."""

import warnings
from collections.abc import Iterator

import numpy as np
import torch

from synthaug._cache.compare import listed
from synthaug._cache.format import State, spans
from synthaug._cache.opened import OpenedCache
from synthaug._cache.readers import Reader
from synthaug._cache.synthesizer import Synthesizer
from synthaug._types import Indices
from synthaug.errors import CacheError


def corrupt(reader: Reader, rows: Indices) -> CacheError:
    """The error that names corrupt rows and the remedy."""
    fault = reader.faults.get(int(rows[0]))
    return CacheError(
        f"{reader.contents.path}: the pixels of {listed(rows)} are not those that were written"
        + (f" ({fault}). " if fault else ". ")
        + "Restore the file from a copy, or generate again, which redraws just these rows."
    )


def redrawn(cache: OpenedCache, synthesizer: Synthesizer, rows: Indices) -> torch.Tensor:
    """The images of some rows, drawn anew, (n, C, H, W) in [-1, 1]; a CacheError if the synthesizer
    returned something else."""
    images = synthesizer.draw(cache.plan[rows])
    if tuple(images.shape) != (len(rows), *cache.image_shape) or not images.isfinite().all():
        raise CacheError(
            f"{cache.path}: {listed(rows)} could not be drawn anew: `draw` returned "
            f"{tuple(images.shape)}, finite: {bool(images.isfinite().all())}."
        )
    return images


class Substitutes:
    """The intact rows that one process serves in place of corrupt ones of their class."""

    def __init__(self) -> None:
        self._row_for: dict[int, int] = {}

    @property
    def skipped(self) -> Indices:
        """The corrupt rows, int64, ascending."""
        return np.array(sorted(self._row_for), np.int64)

    def put(self, rows: Indices) -> Indices:
        """`rows` with the substitutes of those that have one."""
        return np.array([self._row_for.get(row, row) for row in rows.tolist()], np.int64)

    def find(self, cache: OpenedCache, reader: Reader, bad: Indices) -> None:
        """Finds a substitute for each corrupt row, and warns; a CacheError if no row of the class
        is intact."""
        for row in bad.tolist():
            if row in self._row_for:
                continue
            for candidate in _others_of_class(cache, row):
                if reader.intact(np.array([candidate])).all():
                    break
            else:
                raise corrupt(reader, np.array([row]))
            reader.served[candidate] = 1
            self._row_for[row] = candidate
            warnings.warn(
                f"{cache.path}: row {row} is corrupt and was skipped; row {candidate} of the same "
                f"class takes its place. {len(self._row_for)} skipped so far.",
                stacklevel=2,
            )


def _others_of_class(cache: OpenedCache, row: int) -> Iterator[int]:
    """Done rows of the class of `row`, first those behind it, then those before."""
    label = cache.plan.at("label", [row])[0]
    after, before = (slice(row + 1, len(cache)), slice(0, row))
    for side in (after, before):
        for span in spans(side.stop - side.start):
            piece = slice(side.start + span.start, side.start + span.stop)
            same = cache.plan.at("label", piece) == label
            same &= cache.state_of(piece) == State.DONE
            yield from (np.flatnonzero(same) + piece.start).tolist()
