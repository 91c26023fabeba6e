"""Public packages whose names are loaded when first used."""

import re
from collections.abc import Callable
from importlib import import_module
from typing import Any


def lazy_names(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Makes `__getattr__` and `__dir__` of a package from what it imports for type checkers.

    Args:
        package: Its `__name__`.
        file: Its `__file__`. Whatever is imported in its `if TYPE_CHECKING:` is a name of the
            package.
    """
    with open(file, encoding="utf-8") as source:
        imports = re.findall(
            r"^    from (\S+) import \(?([\w,\s]+?)\)?$", source.read(), re.MULTILINE
        )
    homes = {name: home for home, names in imports for name in re.findall(r"\w+", names)}

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return vars(import_module(homes[name]))[name]

    def names() -> list[str]:
        return sorted(homes)

    return get, names
