"""Public packages whose names are loaded when first used."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(
    package: str, exports: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Makes `__getattr__` and `__dir__` of a package.

    Args:
        package: Its `__name__`.
        exports: Module => the public names in it, with spaces between them. They stand beside the
            same imports for type checkers, since a package cannot read its own source everywhere:
            archives and frozen applications hold none.
    """
    homes = {name: home for home, names in exports.items() for name in names.split()}

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return vars(import_module(homes[name]))[name]

    def names() -> list[str]:
        return sorted(homes)

    return get, names
