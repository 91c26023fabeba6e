"""Notes that audits keep beside images, in FILE.audit.json, for later audits.

That are the scores of rows that were withdrawn from a cache, whose images are erased: without them
the next audit could not rank what was drawn. And the pairs that a person found harmless, which
every later report names.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synthaug._audit.acceptance import Acceptance
from synthaug._support.files import write_text
from synthaug._support.locks import claimed
from synthaug._support.report import DAMAGE, damage_of, encode, read_as
from synthaug._types import JSON
from synthaug.errors import AuditError

_FORMAT, _FORMAT_VERSION = "synthaug-audit-notes", 1

_PATIENCE = 60.0  # seconds: nobody writes for longer


@dataclass(frozen=True, kw_only=True)
class KeptScores:
    """Scores that an audit measured for n rows that were withdrawn later."""

    basis: dict[str, JSON]
    """What the scores rest on. Only with images that have the same basis can they be ranked."""
    created: str
    """When they were measured."""
    seed: NDArray[np.uint64]
    """Seed of each row in the plan, which no other image has, (n,)."""
    scores: tuple[NDArray[np.float64], ...]
    """Of each statistic, (n,)."""
    distances: tuple[NDArray[np.float64], ...]
    """Of each statistic, (n,)."""
    neighbor: NDArray[np.int64]
    """Row number of the training image that each came closest to, (n,)."""
    neighbor_flipped: NDArray[np.bool_]
    """Whether it was the mirrored one, (n,)."""
    rmse: NDArray[np.float64]
    """Difference to it, (n,)."""
    near_equal: NDArray[np.bool_]
    """Whether it had equal or nearly equal pixels, (n,)."""
    group: NDArray[np.int64]
    """Number of the group of images that resembled each other, (n,); -1 if there were none."""
    others: tuple[tuple[int, int], ...]
    """Other rows of these groups: number of the group, and seed."""
    held_out: tuple[tuple[int, int], ...]
    """Hold-out images of these groups: number of the group, and of the image."""


@dataclass(frozen=True, kw_only=True)
class Notes:
    """The notes kept beside audited images."""

    withdrawn: tuple[KeptScores, ...] = ()
    accepted: tuple[Acceptance, ...] = ()


def notes_path(images: Any) -> Path | None:
    """Where the notes about images are: beside their file or folder; `None` if they have none.

    Args:
        images: A cache, or how a command line names it, a file or "folder:PATH".
    """
    from synthaug._cache import SynthCache

    place = os.fspath(images.path if isinstance(images, SynthCache) else images or "")
    path = Path(place.removeprefix("folder:").removeprefix("hdf5:")).expanduser().absolute()
    return path.with_name(f"{path.name}.audit.json") if place and path.exists() else None


def read_notes(path: Path | None) -> Notes:
    """The notes at `path`; without any, empty ones.

    Raises:
        AuditError: The file cannot be read, or holds something else.
    """
    if path is None or not path.exists():
        return Notes()
    try:
        notes: Notes = read_as(Notes, path, (_FORMAT, _FORMAT_VERSION), 2**34)
        return notes
    except (OSError, *DAMAGE) as error:
        raise AuditError(
            f"{path} does not hold the notes of audits ({damage_of(error)}). Restore it, or "
            "delete it: then withdrawn rows cannot be ranked, and nothing is accepted."
        ) from error


def carry_accepted(parts: Sequence[Any], whole: Any) -> int:
    """Keeps beside a merged cache which pairs were accepted beside its parts.

    Pairs are known by what their images hold, so they are the same in the whole. Scores of rows
    that were withdrawn are not: they rest on what else was judged with these rows.

    Args:
        parts: The caches that were merged, as in `notes_path`.
        whole: The merged cache.

    Returns:
        How many pairs.

    Raises:
        AuditError: A file of notes cannot be read or written.
    """
    found = [read_notes(notes_path(part)).accepted for part in parts]
    accepted = tuple(dict.fromkeys(one for some in found for one in some))
    if accepted:
        add_notes(whole, Notes(accepted=accepted))
    return sum(len(one.pairs) for one in accepted)


def add_notes(images: Any, notes: Notes) -> None:
    """Adds to the notes beside images. Processes that do so at once take turns.

    Args:
        images: Same as in `notes_path`.
        notes: The new notes.

    Raises:
        ValueError: The images have no place.
        AuditError: The file cannot be read or written.
    """
    path = notes_path(images)
    if path is None:
        raise ValueError(
            f"{images} is not a cache, file or folder, so nothing can be kept beside it."
        )
    try:
        with claimed(path, patience=_PATIENCE) as mine:
            if not mine:
                raise AuditError(f"{path} is being written by another process. Try again.")
            old = read_notes(path)
            joined = Notes(
                withdrawn=old.withdrawn + notes.withdrawn,
                accepted=old.accepted + tuple(x for x in notes.accepted if x not in old.accepted),
            )
            head = {"format": _FORMAT, "format_version": _FORMAT_VERSION}
            write_text(path, encode({**head, **vars(joined)}), private=True)
    except OSError as error:
        raise AuditError(
            f"Cannot write {path}: {error.strerror}. Make its folder writable."
        ) from error
