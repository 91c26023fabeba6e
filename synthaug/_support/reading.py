"""Files that may come from strangers: only regular ones are opened, and JSON has its limits.

A pipe in place of a file would be waited for until somebody writes to it, which may be never; a
device may have no end; a file nested deeply enough ends the recursion of whoever walks through it.
All of it is an `OSError` or a `ValueError` here, to which callers add what the file should be.
"""

import errno
import json
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from synthaug._support import system

MAX_JSON = 2**28
"""Bytes of a JSON file that is a record or a config."""
MAX_DEPTH = 100
"""Levels of lists and objects in JSON. Ours has at most ten."""

_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.\-]+://")
_ADDRESS = re.compile(rf"{_URL.pattern}[^\s\"']*")
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def check_regular(path: str | os.PathLike[str]) -> None:
    """Refuses a name of anything but a regular file with an OSError, before a library opens it."""
    _refuse_others(path, os.stat(path))


def check_regular_below(folder: str | os.PathLike[str]) -> None:
    """Refuses a folder with a pipe, a device or a socket anywhere in it with an OSError, before a
    library opens some of it."""
    for where, _, names in os.walk(folder):
        for name in names:
            check_regular(Path(where, name))


@contextmanager
def open_regular(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Opens a regular file to read its bytes; anything else is an OSError."""
    with open(path, "rb", opener=_open_at_once) as file:
        _refuse_others(path, os.fstat(file.fileno()))
        yield file


def _open_at_once(path: str, flags: int) -> int:
    """Opens without waiting for a writer of a pipe, and without becoming a terminal's owner."""
    return os.open(path, flags | system.NO_WAIT)


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a URL of a store, such as "s3://bucket/cifar.h5"."""
    return isinstance(path, str) and _URL.match(path) is not None


def without_secrets(text: str) -> str:
    """A text whose URLs have neither credentials nor a query, which may be a signature."""
    return _ADDRESS.sub(
        lambda url: re.sub(r"(?<=://)[^/@]*@", "", re.split("[?#]", url[0])[0]), text
    )


def check_local(path: str | os.PathLike[str]) -> None:
    """Looks at a name before something is written that no store takes from us.

    Raises:
        ValueError: It is a URL; the text has the remedy.
    """
    if is_remote(path):
        raise ValueError(
            f"{without_secrets(str(path))} is a URL, and this is written on a local disk, where a "
            "kill loses nothing. Give a local path, and put what is finished into the store, a "
            "cache with `synthaug.caches.upload`."
        )


def check_replaceable(path: str | os.PathLike[str]) -> None:
    """Looks at a name before work starts whose result takes its place: a device would be lost.

    Raises:
        ValueError: It is a URL; or it is there, and is a folder, a pipe, a device or a socket.
    """
    check_local(path)
    if not os.path.exists(path) or os.path.isfile(path):
        return
    kind = _KINDS.get(stat.S_IFMT(os.stat(path).st_mode), "a folder")
    raise ValueError(f"{os.fspath(path)} is {kind}, expected the name of a file to write.")


def read_text(path: str | os.PathLike[str], limit: int = MAX_JSON) -> str:
    """Reads a text file in UTF-8.

    Args:
        path: Name of the file.
        limit: The most bytes that it may have.

    Raises:
        OSError: It cannot be read, is no regular file, or is larger.
        UnicodeDecodeError: It is no text.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            problem = f"it has {size:,} bytes, more than the {limit:,} that it may have"
            raise OSError(errno.EFBIG, problem, os.fspath(path))
        return file.read().decode("utf-8")


def parse_json(text: str, *, parse_constant: Callable[[str], Any] | None = None) -> Any:
    """Parses JSON that is not nested more deeply than is sensible.

    Args:
        text: Text to parse.
        parse_constant: Called for NaN and infinities, as `json.loads` does.

    Raises:
        ValueError: It is not JSON, or has more than `MAX_DEPTH` levels.
    """
    deep = ValueError(f"it is nested more than {MAX_DEPTH} levels deep")
    try:
        value = json.loads(text, parse_constant=parse_constant)
    except RecursionError:
        raise deep from None
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return value
    raise deep


def _inside(value: Any) -> Iterable[Any]:
    """The lists and objects that are directly in a list or an object."""
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list):
        return ()
    return [inner for inner in value if isinstance(inner, list | dict)]


def _refuse_others(path: str | os.PathLike[str], info: os.stat_result) -> None:
    kind = stat.S_IFMT(info.st_mode)
    if kind == stat.S_IFDIR:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if kind != stat.S_IFREG:
        problem = f"it is {_KINDS.get(kind, 'something else')}, expected a file"
        raise OSError(errno.EINVAL, problem, os.fspath(path))
