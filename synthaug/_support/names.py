"""Names of classes in one form, so that equal names are equal text."""

import unicodedata
from collections.abc import Iterable
from typing import Any


def class_name(name: Any) -> str:
    """The name of a class as text, with accents composed (NFC).

    File systems keep "é" as one character or as two, which look alike and are not equal. A tuple of
    synonyms, as torchvision's ImageNet has them, is joined by commas.
    """
    text = ", ".join(map(str, name)) if isinstance(name, tuple | list) else str(name)
    return unicodedata.normalize("NFC", text)


def class_names(names: Iterable[Any]) -> tuple[str, ...]:
    """The names of all classes.

    Raises:
        TypeError: For a single text, whose letters would be taken for classes.
    """
    if isinstance(names, str):
        raise TypeError(f"`classes` is the text {names!r}, expected a list of names.")
    return tuple(map(class_name, names))
