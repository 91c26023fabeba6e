"""Names of classes in one form, so that equal names are equal text, and names for all systems."""

import re
import unicodedata
from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

import numpy as np

from synthaug._printable import printable_line

_RESERVED = {"con", "prn", "aux", "nul", "conin$", "conout$"} | {
    f"{port}{number}" for port in ("com", "lpt") for number in "0123456789\u00b9\u00b2\u00b3"
}
"""Names that Windows keeps for devices, whatever follows after a dot."""
_LONGEST_NAME = 255
"""Bytes of a name that most file systems take."""
_LONGEST_PATH = 200
"""Characters of a path in a folder that is passed on: Windows takes 259 with what lies above it."""
_LONGEST_STEM = 80


@runtime_checkable
class _Array(Protocol):
    """Interface of objects that numpy reads as arrays: its own, and tensors."""

    def __array__(self) -> Any: ...


def class_name(name: Any) -> str:
    """The name of a class as text, with accents composed (NFC).

    File systems keep "é" as one character or as two, which look alike and are not equal. A tuple of
    synonyms, as torchvision's ImageNet has them, is joined by commas.
    """
    if isinstance(name, tuple | list):
        name = ", ".join(map(class_name, name))
    text = name.decode() if isinstance(name, bytes) else str(name)  # HDF5 files have bytes
    return unicodedata.normalize("NFC", text)


def class_names(names: Iterable[Any]) -> tuple[str, ...]:
    """The names of all classes.

    Raises:
        TypeError: For a single text, whose letters would be taken for classes, for a set, which has
            no order, and for what is no list at all.
    """
    if isinstance(names, str):
        raise TypeError(f"`classes` is the text {names!r}, expected a list of names.")
    if isinstance(names, set | frozenset) or not isinstance(names, Iterable):
        raise TypeError(
            f"`classes` is {names!r}, expected a list of names in the order of the labels."
        )
    if isinstance(names, _Array):  # a tensor gives tensors, which are no names
        names = np.asarray(names).tolist()
    return tuple(map(class_name, names))


def one_for_all_systems(name: str) -> str:
    """The same for all names that some file system takes for one."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def path_fault(path: str) -> str:
    """Says why a relative path is none on some system; "" if it is one on Linux, macOS and Windows.

    Folders travel: to systems that keep some names for devices, cut dots off, or limit the length.

    Args:
        path: Names with "/" between them.
    """
    for name in path.split("/"):
        size = len(name.encode("utf-8", "surrogatepass"))
        if name != printable_line(name) or any(c in name for c in '\\:*?"<>|'):
            return f"{printable_line(name)!r} has characters that some systems refuse"
        if name[:1] in ("", ".", " ") or name[-1:] in (".", " "):
            return f"{name!r} is empty, hidden, or ends with a dot or a space"
        if one_for_all_systems(name).partition(".")[0].rstrip() in _RESERVED:
            return f"Windows keeps {name!r} for a device"
        if size > _LONGEST_NAME:
            return f"it has {size:,} bytes, more than the {_LONGEST_NAME} of a name"
    length = len(path.encode("utf-16-le", "surrogatepass")) // 2
    if length > _LONGEST_PATH:
        return (
            f"the path has {length} characters, and only {_LONGEST_PATH} leave room on Windows for "
            "the folders above"
        )
    return ""


def file_stem(name: str) -> str:
    """The beginning of a file's name out of any text; several texts may share it."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:_LONGEST_STEM] or "arm"
