"""Names of classes in one form, so that equal names are equal text."""

import unicodedata
from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

import numpy as np


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
