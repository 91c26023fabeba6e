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

_PIECE = 2**16
"""How many are read at once: there are places for many more than there are."""


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
    return ~keys[::-1] if 2 * len(keys) < places else keys[:0]


def read_tombstones(path: Path, places: int, read: Callable[[int, int], Unsigned]) -> Unsigned:
    """Reads the keys, and compares those before the first zero with their complements.

    A gap has no complements either: a power failure came while keys were written, or the list is
    damaged and has no room for complements. What stands behind it is known all the same.

    Args:
        path: For the message.
        places: How many the file has.
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
        if 2 * len(keys) >= places:
            return np.append(keys, behind[behind != 0])
        last = read(places - len(keys) - 1, len(keys) + 1)
        if not last[0] and ((last[1:] == 0) | (last[1:] == ~keys[::-1])).all():
            behind = behind[: places - 2 * len(keys)]
            return np.append(keys, behind[behind != 0])
        if before is not None and np.array_equal(keys, before):  # nobody is writing them just now
            raise CacheError(
                f"The tombstones of {path} are damaged: what was forgotten there could come back. "
                "Restore the file from a copy."
            )
        before = keys
