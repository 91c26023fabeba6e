"""Libraries that come with an extra of the package, and may be missing."""

from importlib import import_module
from typing import Any


def import_extra(module: str, needs: str, extra: str) -> Any:
    """Imports a module of a library that an extra installs.

    Args:
        module: Name of the module, with that of its library in front.
        needs: Who needs the library, as the message begins: "`engine='ray'` needs Ray".
        extra: Name of the extra.

    Raises:
        ImportError: Naming the extra if the library is missing.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] != module.partition(".")[0]:
            raise  # the library is there, and lacks another one
        raise ImportError(f"{needs}. Install it with `pip install 'synthaug[{extra}]'`.") from None
