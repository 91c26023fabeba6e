"""Advisory locks for jobs: one process at a time, and a note that says which one it is."""

import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from synthaug._support import system
from synthaug._support.reading import open_regular, parse_json, read_text

logger = logging.getLogger("synthaug")

_LOOK = 0.1  # seconds between two looks at a lock that is taken
_NO_LOCK = -1
_BEGIN = b'{"host": '
"""How a note begins."""


@contextmanager
def claimed(
    path: str | os.PathLike[str], *, shared: bool = False, patience: float = 0.0
) -> Iterator[bool]:
    """Whether nobody else has a claim on `path`; then we hold it while the block runs.

    A claim is a lock of the system (`flock`) on the file PATH.lock. It ends with its process,
    however that ends, so a file that a kill left behind is in nobody's way. In it stands whose
    claim it is, for `owner_of`. Where no lock is to be had, that note is all there is, and the log
    says that nothing guards.

    Args:
        path: The path to claim; it need not exist.
        shared: Share the claim with others that do so too.
        patience: Seconds to wait for the claim; `math.inf` waits for ever.

    Raises:
        ValueError: PATH.lock is a file of somebody else, who would lose it.
    """
    lock, until = _lock_of(path), time.monotonic() + patience
    _refuse_foreign(lock)
    waited = False
    while (fd := _take(lock, shared)) is None:
        if time.monotonic() >= until:
            yield False
            return
        if not waited:
            logger.info("%s: waiting for %s", path, owner_of(path))
            waited = True
        time.sleep(_LOOK)
    try:
        yield True
    finally:
        _give_back(lock, fd)


def owner_of(path: str | os.PathLike[str]) -> str:
    """Who has the claim on `path`: "process 123 on node7, since 2026-11-30 09:41:03 UTC"."""
    note = _note(_lock_of(path))
    if note is None:
        return "another process"
    text = f"process {note['process']} on {note['host']}, since {note['since']}"
    if note["host"] == socket.gethostname():
        return text
    return f"{text} (if that host is gone, delete {_lock_of(path)})"


def _lock_of(path: str | os.PathLike[str]) -> Path:
    return Path(f"{os.path.realpath(path)}.lock")


def _refuse_foreign(lock: Path) -> None:
    try:
        with open_regular(lock) as file:
            start = file.read(len(_BEGIN)).strip(b"\0")  # zeros are of a power failure
    except OSError:  # there is none, or it is not opened below either
        if not lock.is_fifo():
            return
        start = b"a pipe"
    if not lock.is_symlink() and not _BEGIN.startswith(start):
        raise ValueError(
            f"{lock} is no lock of synthaug, which would be written over it. Move it away, or "
            "choose another name."
        )


def _take(lock: Path, shared: bool) -> int | None:
    """A descriptor that holds the lock, `_NO_LOCK` if there is none to be had, `None` if taken."""
    fd = _NO_LOCK
    while fd == _NO_LOCK:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:  # some systems call it a missing file: to try again does not help
            return _without_lock(lock, shared, error)
        try:
            # To write: network file systems lock only then.
            fd = os.open(lock, os.O_RDWR | os.O_CREAT | system.OURS | system.NO_LINK, 0o666)
            system.lock(fd, shared=shared, wait=False)
            if os.stat(lock).st_ino != os.fstat(fd).st_ino:
                raise FileNotFoundError
        except FileNotFoundError:  # its last owner removed it before it was ours: take the new one
            _close(fd)
            fd = _NO_LOCK
        except BlockingIOError:
            _close(fd)
            return None
        except OSError as error:
            _close(fd)
            return _without_lock(lock, shared, error)
    note = _note(lock)
    if note is not None and note["host"] != socket.gethostname():
        logger.warning(
            "%s names process %s on %s, and is free here: that job was killed, or locks do not "
            "reach from host to host on this file system. Then nothing guards: make sure that it "
            "has ended.",
            lock,
            note["process"],
            note["host"],
        )
    with suppress(OSError):  # a full disk: then the lock has no name
        os.ftruncate(fd, 0)
        system.write_at(fd, memoryview(json.dumps(_own_note()).encode()), 0)
    return fd


def _without_lock(lock: Path, shared: bool, error: OSError) -> int | None:
    """Returns the answer of `_take` where the system refuses to lock: it goes by the note."""
    note = _note(lock)
    if note is not None and not shared and not _has_ended(note):
        return None
    logger.warning(
        "%s cannot be locked (%s): nothing guards against a second job on the same file. Make sure "
        "that only one runs.",
        lock,
        error.strerror,
    )
    with suppress(OSError):
        # Not through a link that somebody put there, and without a wait for a pipe's reader.
        flags = os.O_WRONLY | os.O_CREAT | system.NO_LINK | system.NO_WAIT | system.OURS
        fd = os.open(lock, flags, 0o666)
        os.ftruncate(fd, 0)
        os.write(fd, json.dumps(_own_note()).encode())
        os.close(fd)
    return _NO_LOCK


def _give_back(lock: Path, fd: int) -> None:
    with suppress(OSError):  # others share it, or it is gone
        if fd != _NO_LOCK:
            system.lock(fd, wait=False)
            if not system.WINDOWS:  # where open files cannot be removed
                os.unlink(lock)
            system.unlock(fd)  # also for what was forked meanwhile
        elif (_note(lock) or {}).get("process") == os.getpid():
            os.unlink(lock)
    _close(fd)


def _close(fd: int) -> None:
    if fd != _NO_LOCK:
        os.close(fd)


def _own_note() -> dict[str, Any]:
    pid = os.getpid()
    since = f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M:%S} UTC"
    return {
        "host": socket.gethostname(),
        "process": pid,
        "since": since,
        "started": _start_of(pid),
    }


def _note(lock: Path) -> dict[str, Any] | None:
    """Returns the note in the file; `None` if there is none."""
    try:
        note = parse_json(read_text(lock))
    except (OSError, ValueError):
        return None
    return note if isinstance(note, dict) and {*note} == {*_own_note()} else None


def _has_ended(note: dict[str, Any]) -> bool:
    """Whether the process was of this host, and is none now, or another of the same number."""
    return bool(
        note["host"] == socket.gethostname() and _start_of(note["process"]) != note["started"]
    )


def _start_of(pid: int) -> int | None:
    """When a process started, in ticks since the system did; 0 if that is not known; `None` if
    there is no such process."""
    try:
        # The second field, the name, is in parentheses and may hold anything.
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        pass
    if system.WINDOWS:  # where the call below would end the process
        return 0
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:  # another user's
        return 0
    return 0
