"""Caches in object stores: fetched once into a local folder, then read like any other."""

import errno
import hashlib
import json
import logging
import math
import os
import re
import time
from pathlib import Path
from typing import Any

from synthaug._cache.files import check_room
from synthaug._support.extras import from_extra
from synthaug._support.files import whole_file, write_text
from synthaug._support.locks import claimed
from synthaug._support.progress import bar
from synthaug._types import StrPath
from synthaug.errors import CacheError

logger = logging.getLogger("synthaug")

_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.\-]+://")
_BLOCK = 8 * 2**20
_HOME = "SYNTHAUG_REMOTE_DIR"
_NAME = 40
"""Characters of an object's name that the name of its copy has."""


def is_remote(path: StrPath) -> bool:
    """Whether a path is a URL of a store, such as "s3://bucket/cifar.h5"."""
    return isinstance(path, str) and _URL.match(path) is not None


def refuse_remote(path: StrPath) -> None:
    """Refuses a URL where a file is written.

    Raises:
        CacheError: Naming the URL and the remedy.
    """
    if is_remote(path):
        raise CacheError(
            f"{path} is a URL, and files are written on a local disk, where a kill loses nothing. "
            "Give a local path, and put what is finished into the store, a cache with "
            "`synthaug.caches.upload`."
        )


def fetched(url: str, local_dir: StrPath | None = None) -> Path:
    """Copies a cache from a store into a local folder, once; returns the path of the copy.

    Later calls, of this process or another, find the copy and ask the store only whether the object
    is still the same. Processes that come at once take turns, so one of them fetches.

    Args:
        url: A URL that fsspec opens: "s3://bucket/cifar.h5", "gs://...", "hf://datasets/...".
        local_dir: Folder of the copies. By default the environment variable SYNTHAUG_REMOTE_DIR, or
            `~/.cache/synthaug/remote`.

    Raises:
        ImportError: The package for this kind of store is not installed.
        CacheError: The store does not answer or has no such object, there is no room, the object
            changed while it was copied, or it is another one than the copy at hand.
    """
    path = _place(url, local_dir)
    store, name = _store(url)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_stored(url, path, error) from error
    with claimed(path, patience=math.inf):
        known = _recorded(path)
        try:
            found = _identity(store, name)
        except Exception as error:  # each kind of store has errors of its own
            if isinstance(error, FileNotFoundError) and not _is_network_fault(error.__cause__):
                raise CacheError(f"{url} does not exist. Check the name of the object.") from error
            if known is None:
                raise _unreachable(url, error) from error
            logger.warning(
                "%s does not answer (%s). The local copy of %s is used: %s",
                *(url, _reason(error), known["fetched"], path),
            )
            return path
        if known is None:
            _copy(url, store, name, path, found)
        elif known["object"] != found:
            raise CacheError(
                f"{url} has changed since {known['fetched']}, when it was copied to {path}. Delete "
                "that file to fetch the new one, or give another `local_dir`."
            )
    return path


def upload(path: StrPath, url: str) -> None:
    """Copies a cache file into a store, from which `SynthCache(url)` reads it.

        synthaug.caches.upload("cifar.h5", "s3://bucket/cifar.h5")

    Fill the cache first: what is written to the file later is not in the store.

    Args:
        path: A cache on this machine.
        url: The new object; one of that name is replaced, by stores in one step.

    Raises:
        ImportError: The package for this kind of store is not installed.
        CacheError: `path` is no cache, `url` no URL, or the store does not answer.
    """
    from synthaug._cache.schema import inspect

    inspect(Path(path))
    if not is_remote(url):
        raise CacheError(f"`url` is {url!r}, expected one such as 's3://bucket/cifar.h5'.")
    store, name = _store(url)
    try:
        store.put_file(os.fspath(path), name)
        size = _identity(store, name)["size"]
    except Exception as error:  # each kind of store has errors of its own
        raise _unreachable(url, error) from error
    if size != os.path.getsize(path):
        raise CacheError(f"{url} has {size:,} bytes, {path} {os.path.getsize(path):,}. Try again.")


def _place(url: str, local_dir: StrPath | None) -> Path:
    """Where the copy of a URL belongs: copies of equal names do not meet."""
    default = os.environ.get(_HOME) or "~/.cache/synthaug/remote"
    folder = Path(local_dir if local_dir is not None else default).expanduser().absolute()
    # Without a query, which may be a signature; and systems limit the bytes of a name.
    plain = re.split(r"[?#]", url)[0].rstrip("/").rpartition("/")[2]
    name = re.sub(r"[^\w.\-]", "_", plain)[-_NAME:] or "cache.h5"
    return folder / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name}"


def _store(url: str) -> tuple[Any, str]:
    """The file system of fsspec, and the name of the object in it."""
    with from_extra("fsspec", f"{url} needs fsspec", "remote"):
        from fsspec.core import url_to_fs
    try:
        return url_to_fs(url)
    except ImportError as error:
        raise ImportError(f"{url} needs another package. {error}") from error
    except ValueError as error:
        raise CacheError(f"{url} cannot be opened: {error}.") from error


def _identity(store: Any, name: str) -> dict[str, Any]:
    """Returns the mark of this version of an object: its size and the store's own mark."""
    store.invalidate_cache()
    facts = store.info(name)
    if facts.get("type") == "directory" or facts.get("size") is None:
        raise FileNotFoundError(name)
    marks = ("ETag", "etag", "md5Hash", "checksum", "oid", "blob_id", "LastModified", "mtime")
    return {
        "size": int(facts["size"]),
        "mark": next((f"{key} {facts[key]}" for key in marks if facts.get(key)), None),
    }


def _copy(url: str, store: Any, name: str, path: Path, found: dict[str, Any]) -> None:
    size = found["size"]
    check_room(size, path)
    shown = f"Copies {url}"
    try:
        with (
            whole_file(path) as temporary,
            store.open(name, "rb", block_size=_BLOCK, cache_type="none") as source,
            open(temporary, "wb") as copy,
            bar(size, shown, "byte", delay=2) as progress,
        ):
            while block := source.read(_BLOCK):
                copy.write(block)
                progress.update(len(block))
            if copy.tell() != size or _identity(store, name) != found:
                raise CacheError(
                    f"{url} changed while it was copied ({copy.tell():,} of {size:,} bytes). Wait "
                    "until nobody writes it, then try again."
                )
        when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
        record = {"url": url, "object": found, "fetched": when}
        write_text(_record_path(path), json.dumps(record))
    except CacheError:
        raise
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if full or str(error.filename).startswith(str(path.parent)):
            raise _not_stored(url, path, error, f"Free {size:,} bytes, or choose") from error
        raise _unreachable(url, error) from error
    except Exception as error:  # each kind of store has errors of its own
        raise _unreachable(url, error) from error
    logger.info("%s: copied to %s (%s bytes)", url, path, f"{size:,}")


def _record_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _recorded(path: Path) -> dict[str, Any] | None:
    """Returns the note about a whole copy; `None` if there is none, or not all of it."""
    try:
        record = json.loads(_record_path(path).read_text())
        whole = path.stat().st_size == record["object"]["size"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record if whole and isinstance(record.get("fetched"), str) else None


def _is_network_fault(error: BaseException | None) -> bool:
    """Whether it is why an object was not found: over HTTP fsspec says so of every fault."""
    return isinstance(error, OSError) and not isinstance(error, FileNotFoundError)


def _not_stored(url: str, path: Path, error: OSError, remedy: str = "Choose") -> CacheError:
    return CacheError(
        f"Cannot copy {url} to {path}: {error.strerror}. {remedy} another folder with `local_dir`."
    )


def _unreachable(url: str, error: Exception) -> CacheError:
    return CacheError(
        f"{url} cannot be reached: {_reason(error)}. Check the name, your credentials and the "
        "network, then try again: what is at hand stays."
    )


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(".:")
