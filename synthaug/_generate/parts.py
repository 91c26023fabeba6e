"""A job in parts: each a cache of one block of rows, which one process at a time writes.

    cifar.h5                                      the whole, laid out first and filled last
    cifar.h5.parts/rows-0000000000-0000000832.h5  the rows 0 to 831 of its plan
    cifar.h5.parts/rows-0000000832-0000001664.h5

Processes of one host could write their rows into the one file. Processes of several hosts could
not: a network file system buffers whole pages, and a host that writes back the states of its own
rows may write back old states of rows beside them. A process cannot tell which of the two it has,
so all write parts. They cost the disk a second copy of the images until the whole is complete.

The parts follow from the number of rows alone. So a job may go on with another number of processes,
or with Ray where it was begun under torchrun. The states of the rows say what is left.
"""

import logging
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from synthaug._cache import State, SynthCache
from synthaug._cache.files import parts_folder
from synthaug._cache.synthesizer import Synthesizer
from synthaug._cache.tools import copy_rows
from synthaug._generate.draw import fill
from synthaug._plan import canonical_json
from synthaug._support.locks import claimed, owner_of
from synthaug._types import ImageShape, Indices
from synthaug.errors import CacheError, MismatchError

logger = logging.getLogger("synthaug")

_ALIGNMENT = 64
"""Rows. The default batch size: batches then hold the same rows as those of a single process."""
_PATIENCE = 30.0
"""Seconds for which a part is waited for: a process that was killed may need some to be gone."""


@dataclass(frozen=True)
class Part:
    """The rows `start` to `stop` of a plan, and the file that they are drawn into."""

    path: Path
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


def parts_of(path: Path, rows: int) -> list[Part]:
    """The parts of a cache, in order.

    There are 64, each of at least 64 rows; of large jobs up to 1,024, so that many workers have
    enough to choose from, and one that is lost leaves little behind.
    """
    size = max(rows / 1024, min(rows / 64, 1024))
    step = _ALIGNMENT * max(1, math.ceil(size / _ALIGNMENT))
    starts = range(0, rows, step)
    ends = [(start, min(start + step, rows)) for start in starts]
    folder = parts_folder(path)
    return [Part(folder / f"rows-{i:010}-{j:010}.h5", i, j) for i, j in ends]


def lay_out(part: Part, whole: SynthCache) -> None:
    """Makes the file of a part, or checks the one that is there: one of another plan or recipe is a
    MismatchError, a full disk a CacheError."""
    if len(left(part, whole)) and not part.path.exists():
        recorded = {
            name: whole.manifest[name]
            for name in whole.manifest
            if name not in ("classes", "settings", "synthetic", "value_range")  # those of the plan
        }
        rows = whole.plan[part.start : part.stop]
        SynthCache.create(
            part.path,
            rows,
            image_shape=whole.image_shape,
            manifest=recorded,
            encoding=whole.encoding,
        )


def left(part: Part, whole: SynthCache) -> Indices:
    """Rows of a part that are still to be drawn, counted from its start, int64, ascending. A file
    of another plan or recipe is a MismatchError."""
    pending = whole.state_of(slice(part.start, part.stop)) == State.PENDING
    if pending.any() and part.path.exists():
        try:
            pending &= open_part(part, whole).state == State.PENDING
        except (CacheError, MismatchError):
            if part.path.exists():
                raise
            return left(part, whole)  # another process has just put the whole together
    return np.flatnonzero(pending)


def open_part(part: Part, whole: SynthCache) -> SynthCache:
    """The file of a part; a MismatchError if it is of another plan or recipe, a CacheError if it is
    missing or damaged."""
    cache = SynthCache(part.path)
    rows = whole.plan[part.start : part.stop]
    same = canonical_json(cache.manifest["recipe"]) == canonical_json(whole.manifest["recipe"])
    if cache.plan_digest != rows.digest or not same:
        raise MismatchError(
            f"{part.path} was made for another plan or recipe than {whole.path}. Write to another "
            f"file, or delete {part.path.parent} to start over."
        )
    return cache


def draw_part(
    synthesizer: Synthesizer,
    part: Part,
    rows: Indices,
    *,
    batch_size: int,
    seconds: float = math.inf,
    drawn: Callable[[int], object] = lambda count: None,
) -> ImageShape:
    """Draws those of `rows` that are pending into the file of a part; arguments as in `fill`.

    Returns:
        How many of them were drawn, how many are left when the time is over, and the batch size
        that memory has allowed.

    Raises:
        CacheError: Another process writes to the part.
        ValueError, DivergedError, MemoryError: Under the same conditions as `fill`.
    """
    with claimed(part.path, patience=_PATIENCE) as mine:
        if not mine:
            raise CacheError(
                f"{part.path} is being written by {owner_of(part.path)}. Start each shard only "
                "once, or wait until that process has ended."
            )
        cache = SynthCache(part.path)
        pending = rows[cache.state_of(rows) == State.PENDING]
        count, batch_size = fill(
            synthesizer, cache, pending, batch_size=batch_size, seconds=seconds, drawn=drawn
        )
        return count, len(pending) - count, batch_size


def mend(cache: SynthCache) -> None:
    """Makes rows pending whose bytes were damaged, so that they are drawn anew."""
    damaged = cache.verify()
    if len(damaged):
        logger.warning("%s: %d rows are damaged and will be drawn anew", cache.path, len(damaged))
        cache.invalidate(damaged)


def assemble(parts: Sequence[Part], whole: SynthCache) -> bool:
    """Copies the parts into the whole and removes them, unless a row is still to be drawn.

    Every image is checked when it is read from its part, and again in the whole.

    Returns:
        Whether the whole is complete. If two processes find that all is drawn, one of them copies.

    Raises:
        CacheError: An image is not the one that was written; the parts are kept.
    """
    if any(len(left(part, whole)) for part in parts):
        return False
    with claimed(parts_folder(whole.path)) as mine:
        if not mine:
            return False
        for part in parts:
            if (whole.state_of(slice(part.start, part.stop)) == State.PENDING).any():
                copy_rows(open_part(part, whole), whole, part.start)
        wrong = whole.verify()
        if len(wrong):
            raise CacheError(
                f"{whole.path}: {len(wrong):,} rows changed while being copied, the first of them "
                f"{wrong[0]}. Check the disk, and run the job again."
            )
        shutil.rmtree(parts_folder(whole.path), ignore_errors=True)
    return True
