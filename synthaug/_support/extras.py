"""Finds out which optional libraries are installed."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version


@contextmanager
def from_extra(library: str, needs: str, extra: str) -> Iterator[None]:
    """Wraps imports of a library that an extra installs.

        with from_extra("timm", "Features of timm need it", "timm"):
            import timm

    Args:
        library: Name of the package that is imported.
        needs: Who needs the library, as the message begins: "`engine='ray'` needs Ray".
        extra: Name of the extra.

    Raises:
        ImportError: Naming the extra if the library is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] != library:
            raise  # the library is there, and lacks another one
        raise ImportError(f"{needs}. Install it with `pip install 'synthaug[{extra}]'`.") from None


@cache
def installed_version(distribution: str) -> str | None:
    """Looks up the version of an installed distribution; `None` for one used from its sources.

    Looked up once: every cache and every audit names several, and each lookup parses a text of
    hundreds of lines.
    """
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
