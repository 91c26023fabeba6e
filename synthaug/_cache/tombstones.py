"""Records of forgotten images, and how to recognize them elsewhere.

A tombstone is a content key (`_pixels.digest`): of a real image that was forgotten, or of a
synthetic image that was erased. What has such a key, or derives from an image that has it, is
served no more, wherever it comes from: another cache, an export that is imported, a resumed job.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from synthaug._pixels import digest
from synthaug._plan import Plan
from synthaug._types import Bytes, Indices, Unsigned
from synthaug.errors import CacheError

SEALED = "sealed"
"""The attribute of a list that has a seal in its last place also while it is empty."""
_PIECE = 2**16
"""How many are read at once: there are places for many more than there are."""
_NONE = np.uint64(2**64 - 1)
"""The seal of an empty list, the complement of no key: without it, a list that was lost would read
as one to which nothing was added."""


def rows_from_sources(plan: Plan, source_keys: Unsigned) -> Indices:
    """Rows of `plan` that any of these real images went into, int64, ascending."""
    derived = [np.empty(0, np.int64)]
    for name in plan.columns if len(source_keys) else ():
        if name.endswith("_key"):  # parameters are int64: the same 64 bits
            for start, piece in plan.pieces(name):
                derived.append(np.flatnonzero(np.isin(piece.view(np.uint64), source_keys)) + start)
    return np.unique(np.concatenate(derived))


def source_keys_of(plan: Plan) -> Unsigned:
    """Content keys of the real images that the rows of `plan` derive from, with repetitions."""
    columns = [column for name, column in plan.columns.items() if name.endswith("_key")]
    return np.concatenate(columns, dtype=np.uint64, casting="unsafe")


def content_keys(images: Bytes) -> Unsigned:
    """Hashes every image, uint8 (n, C, H, W) -> uint64 (n,)."""
    return np.array([digest(image) for image in torch.from_numpy(images)], np.uint64)


def seals(keys: Unsigned, places: int) -> Unsigned:
    """The complements of the tombstones, as they stand in the last of `places`, by which damage is
    seen; none if keys and complements would touch."""
    if not len(keys):
        return np.array([_NONE])
    return ~keys[::-1] if 2 * len(keys) < places else keys[:0]


def read_tombstones(
    path: Path, places: int, sealed: bool, read: Callable[[int, int], Unsigned]
) -> Unsigned:
    """Reads the keys, and compares those before the first zero with their complements.

    A gap has no complements either: a power failure came while keys were written, or the list is
    damaged and has no room for complements. What stands behind it is known all the same.

    Args:
        path: For the message.
        places: How many the file has.
        sealed: Whether an empty list has a seal, as in all files but older ones.
        read: Reads from a place on as many as the second number says.

    Raises:
        CacheError: They are damaged. A key without a complement is not: a kill came between.
    """
    before: Unsigned | None = None
    while True:
        keys = behind = np.empty(0, np.uint64)
        while len(keys) < places and not len(behind):
            piece = read(len(keys), min(_PIECE, places - len(keys)))
            end = len(piece) if piece.all() else int(np.argmin(piece != 0))
            keys, behind = np.append(keys, piece[:end]), piece[end:]
        full = 2 * len(keys) >= places
        if full or _fit(keys, read(places - len(keys) - 1, len(keys) + 1), sealed):
            keys = np.append(keys, behind if full else behind[: places - 2 * len(keys)])
            return keys[(keys != 0) & (keys != _NONE)]
        if before is not None and np.array_equal(keys, before):  # nobody is writing them just now
            raise CacheError(
                f"The tombstones of {path} are damaged: what was forgotten there could come back. "
                "Restore the file from a copy."
            )
        before = keys


def _fit(keys: Unsigned, last: Unsigned, sealed: bool) -> bool:
    """Whether what stands in as many of the last places, and in one more, is what keys leave there.

    A complement that is not there yet is none, or the seal of the empty list that was there before.
    """
    if not len(keys):
        return bool(last[0] == _NONE or not (last[0] or sealed))
    missing = last[1:] == 0
    missing[-1] |= last[-1] == _NONE
    return bool(not last[0] and (missing | (last[1:] == ~keys[::-1])).all())
