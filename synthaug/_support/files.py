"""Small files that are whole or absent, whatever happens while they are written."""

import errno
import glob
import hashlib
import logging
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from synthaug._support import system
from synthaug._support.reading import check_local, check_replaceable

if TYPE_CHECKING:  # heavy, and nothing that checks the options of a command
    from PIL.Image import Image

logger = logging.getLogger("synthaug")

_UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, 524)  # 524 is ENOTSUPP, of NFS
_PARTIAL = re.compile(r"\.(.+)\.([0-9a-f]{8})([0-9a-f]{8})\.partial", re.DOTALL)


def check_folder(path: str | os.PathLike[str]) -> None:
    """Whether a folder can be written to, or made, before work starts whose results go into it.

    Raises:
        ValueError: It is a URL, or its name is too long; or it, or a folder that it would lie in,
            is a file, or cannot be written to.
    """
    check_local(path)
    path = Path(path).absolute()
    place = next(p for p in (path, *path.parents) if os.path.lexists(p))
    if not place.is_dir():
        kind = "a file" if place.exists() else "a link to nothing"
        raise ValueError(f"{place} is {kind}, expected a folder to write to. Choose another name.")
    _check_lengths(path.relative_to(place).parts)
    if not (os.access(place, os.W_OK | os.X_OK) and _takes_files(place)):
        raise ValueError(
            f"Nothing can be written to the folder {place}: it is read-only, or somebody else's. "
            "Choose another one."
        )


_LONGEST = 220
"""Bytes of a name. Nearly all systems take 255; ours are longer until what they name is whole."""


def _check_lengths(names: Iterable[str]) -> None:
    for name in names:
        size = len(os.fsencode(name))
        if size > _LONGEST:
            raise ValueError(
                f"The name {name[:16]}... has {size} bytes, more than the {_LONGEST} that a name "
                "may have. Choose a shorter one."
            )


def _takes_files(folder: Path) -> bool:
    """Whether a file can be made in a folder: the rights of root, and of a network, do not say."""
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


def check_outputs(*paths: str | os.PathLike[str]) -> None:
    """Whether files can be written, before work starts whose results go into them.

    Raises:
        ValueError: One of them is a URL, a folder, a pipe or a device, or lies where nothing can
            be written.
    """
    for path in paths:
        if os.path.isdir(path):
            raise ValueError(f"{path} is a folder, expected a file to write. Choose another name.")
        check_replaceable(path)
        check_folder(Path(path).parent)
        _check_lengths([Path(path).name])


def sync_file(fd: int) -> None:
    """Waits until what was written is on disk; a file system that cannot say so is done without.

    Raises:
        OSError: If the disk is full or fails.
    """
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        _tell_unsynced(error.strerror)


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Makes new names in a folder last through a power failure, where that can be asked for.

    The files are there and whole either way, so no failure is an error.
    """
    try:
        fd = os.open(folder, os.O_RDONLY | system.OURS)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        _tell_unsynced(error.strerror)


@cache
def _tell_unsynced(reason: str) -> None:
    """Warns once."""
    logger.warning(
        "This file system does not say when data are on disk (%s): a power failure may take what "
        "was written last.",
        reason,
    )


def temporary_name(path: Path) -> Path:
    """A name beside `path` for what becomes it: random digits, and some that say it is ours."""
    token = secrets.token_hex(4)
    return path.with_name(f".{path.name}.{token}{_mark(path.name, token)}.partial")


def unfinished_name(name: str) -> str | None:
    """The name that an unfinished file was to get; `None` if the file is none that we began."""
    found = _PARTIAL.fullmatch(name)
    return found[1] if found and found[3] == _mark(found[1], found[2]) else None


def _mark(name: str, token: str) -> str:
    """8 hexadecimal digits by which a file of somebody else, of a similar name, is left alone."""
    named = os.fsencode(f"{name}/{token}")
    return hashlib.blake2b(named, digest_size=4, person=b"synthaug").hexdigest()


def open_temporary(path: Path, mode: int = 0o666) -> tuple[int, Path]:
    """A new file beside `path`, locked: the lock says that it is in use, and dies with us."""
    while True:
        temporary = temporary_name(path)
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | system.OURS, mode)
        with suppress(OSError):  # a file system without locks: there, orphans stay
            system.lock(fd)
        if os.fstat(fd).st_nlink:
            return fd, temporary
        os.close(fd)  # between creation and lock another process took it for an orphan


def remove_orphans(path: Path) -> list[Path]:
    """Removes what a kill left behind of a new `path`: partial files and folders without a lock.

    Returns:
        Those that stay: another process writes them, or they could not be removed.
    """
    stay = []
    for orphan in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        if unfinished_name(orphan.name) != path.name:
            continue
        try:
            fd = os.open(orphan, os.O_RDONLY | system.OURS | system.NO_LINK | system.NO_WAIT)
        except FileNotFoundError:
            continue
        except OSError:  # a link, or not ours to remove
            stay.append(orphan)
            continue
        try:
            system.lock(fd, wait=False)
            if orphan.is_dir():
                shutil.rmtree(orphan)
            else:
                os.unlink(orphan)
        except OSError:  # in use, or a file system without locks
            stay.append(orphan)
        finally:
            os.close(fd)
    return [orphan for orphan in stay if os.path.lexists(orphan)]


@contextmanager
def whole_file(path: str | os.PathLike[str], *, private: bool = False) -> Iterator[str]:
    """Gives the name of a temporary file, which takes the place of `path` when it is complete.

    Until it is whole and on disk, an older file stays. What a kill left behind of an earlier call
    for the same path is removed.

    Args:
        path: File to write; its folder is made if it is missing.
        private: For its owner only.

    Raises:
        ValueError: There is something else of that name: a folder, a pipe, a device.
    """
    path = Path(path)
    check_replaceable(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_orphans(path)
        lock, temporary = open_temporary(path, 0o600 if private else 0o666)
    except OSError as error:  # which names the temporary file
        raise OSError(error.errno, error.strerror, str(path)) from error
    try:
        yield str(temporary)
        with open(temporary, "r+b") as written:  # Windows syncs what may be written only
            sync_file(written.fileno())
        lock = system.released(lock)
        os.replace(temporary, path)
    except BaseException:
        lock = system.released(lock)
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    finally:
        system.close(lock)


def picture_format(path: str | os.PathLike[str]) -> str:
    """The format of a picture by its name, asked before work starts that ends with the picture.

    Raises:
        ValueError: Pillow writes no such format, or something else than a file has the name.
    """
    check_replaceable(path)
    from PIL import Image

    Image.init()
    suffix = Path(path).suffix.lower()
    name = Image.registered_extensions().get(suffix)
    if name not in Image.SAVE:
        raise ValueError(
            f"{os.fspath(path)}: pictures cannot be written as {suffix!r}. Use a name "
            "that ends in .png."
        )
    return name


def write_picture(path: str | os.PathLike[str], picture: "Image") -> None:
    """Writes a picture in the format that its name says, whole or not at all."""
    with whole_file(path) as temporary:
        picture.save(temporary, format=picture_format(path))


def write_text(path: str | os.PathLike[str], text: str, *, private: bool = False) -> Path:
    """Writes a text file: until it is whole and on disk, an older one stays.

    Args:
        path: File to write; its folder is made if it is missing.
        text: Text to write, as UTF-8.
        private: For its owner only, where others could see real images in it.
    """
    path = Path(path)
    with whole_file(path, private=private) as temporary:
        Path(temporary).write_text(text, encoding="utf-8")
    return path
