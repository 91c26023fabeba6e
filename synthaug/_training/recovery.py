"""Checkpoints to go on from: digests of every file, two kept, a damaged one passed over."""

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from synthaug._support.digests import file_digest
from synthaug._support.reading import parse_json, read_text
from synthaug._training.checkpoints import reading, replaced, write_json
from synthaug.errors import CheckpointError

logger = logging.getLogger("synthaug")

_DIGESTS = "digests.json"
Read = TypeVar("Read")


def kept_in(folder: Path) -> list[Path]:
    """The checkpoints that there are, the last one first: `folder`, and the one before it."""
    return [place for place in (folder, _beside(folder, "previous")) if place.exists()]


def remove(folder: Path) -> None:
    """Deletes all checkpoints, damaged ones too."""
    for place in (folder, _beside(folder, "previous"), _beside(folder, "damaged")):
        shutil.rmtree(place, ignore_errors=True)


@contextmanager
def sealed(folder: Path) -> Iterator[Path]:
    """A new directory to fill, which gets digests and takes the place of `folder` once it is whole.

    What was in `folder` is kept as the checkpoint before it, in the place of an older one.
    """
    with replaced(folder, keep=_beside(folder, "previous")) as new:
        yield new
        write_json(new / _DIGESTS, {path.name: file_digest(path) for path in sorted(new.iterdir())})


def newest_whole(folder: Path, read: Callable[[Path], Read], remedy: str) -> Read | None:
    """Reads the last whole checkpoint with `read`; returns `None` if there is none.

    A damaged one is set aside, with a warning, and the one before it is read.

    Args:
        folder: Where `sealed` wrote.
        read: Reads a directory whose files have their digests. If it raises, that is damage too; it
            is then called with the one before, and must replace all that it has read.
        remedy: Remedy in the message if none can be read.

    Raises:
        CheckpointError: If there are some, and all of them are damaged.
        SynthaugError: Others that `read` raises, such as `MismatchError`.
    """
    problems: list[str] = []
    for place in kept_in(folder):
        try:
            with reading(place, remedy):
                _check_digests(place)
                found = read(place)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        if problems:
            aside = _beside(folder, "damaged")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
            logger.warning(
                "%s It is now %s. Training resumes from the checkpoint before it, %s.",
                problems[0].removesuffix(f" {remedy}"),
                aside,
                place,
            )
        return found
    if problems:
        raise CheckpointError(" ".join(problems))
    return None


def _beside(folder: Path, what: str) -> Path:
    return folder.with_name(f"{folder.name}-{what}")


def _check_digests(folder: Path) -> None:
    """Compares every file with its digest; a ValueError names one that changed, is missing or was
    not there."""
    digests: Any = parse_json(read_text(folder / _DIGESTS))
    for name in sorted({*digests, *(path.name for path in folder.iterdir())} - {_DIGESTS}):
        if not (folder / name).is_file() or digests.get(name) != file_digest(folder / name):
            raise ValueError(f"{name} is not the file that was written")
