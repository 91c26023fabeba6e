"""Public packages whose names are loaded when first used."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Makes `__getattr__` and `__dir__` of a package.

    Args:
        package: Its `__name__`.
        homes: Public name => the module of the package that has it.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return vars(import_module(f"{package}.{homes[name]}"))[name]

    def names() -> list[str]:
        return sorted(homes)

    return get, names
