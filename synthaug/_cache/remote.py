"""Caches in object stores: fetched once into a local folder, then read like any other."""

import errno
import hashlib
import json
import logging
import math
import os
import re
import shutil
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from inspect import signature
from pathlib import Path
from typing import Any

from synthaug._cache.files import check_room, new_file
from synthaug._support.extras import from_extra
from synthaug._support.files import whole_file, write_text
from synthaug._support.locks import claimed
from synthaug._support.progress import bar
from synthaug._support.reading import is_remote, parse_json, read_text, without_secrets
from synthaug._types import StrPath
from synthaug.errors import CacheError

logger = logging.getLogger("synthaug")

_BLOCK = 8 * 2**20
_PART = 50 * 2**20
"""Bytes of the parts in which s3fs uploads."""
_HOME = "SYNTHAUG_REMOTE_DIR"
_UNFINISHED = "unfinished-"
_NAME = 40
"""Characters of an object's name that the name of its copy has."""


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
    store, name, url = _store(url)
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


def upload(path: StrPath, url: str, *, overwrite: bool = False) -> None:
    """Copies a cache file into a store, from which `SynthCache(url)` reads it.

        synthaug.caches.upload("cifar.h5", "s3://bucket/cifar.h5")

    Fill the cache first: what is written to the file later is not in the store. The object is
    compared with the file: by the MD5 that the store tells of it, or by reading it back. The URL is
    noted in PATH.uploads.json, by which `forget` names the object; move that file with the cache.

    Args:
        path: A cache on this machine.
        url: The new object. One of that name with the same bytes is left as it is.
        overwrite: Replace one with other bytes, by stores in one step.

    Raises:
        ImportError: The package for this kind of store is not installed.
        CacheError: `path` is no cache, `url` no URL; another object is there; the store does not
            answer, or what it then holds is not the file.
    """
    from synthaug._cache.schema import inspect

    inspect(Path(path))
    if not is_remote(url):
        raise CacheError(f"`url` is {str(url)!r}, expected one such as 's3://bucket/cifar.h5'.")
    _note_upload(Path(path), without_secrets(url))  # a kill after the upload must not lose it
    _put(Path(path), url, overwrite)


def unfinished(url: str) -> Path:
    """Where a cache for a store is drawn; the file is there until it is whole in the store."""
    copy = _place(url, None)
    return copy.with_name(f"{_UNFINISHED}{copy.name}")


def work_file(url: str) -> Path:
    """Returns the local file in which a cache for a store is drawn.

    Of a cache that the store has already it is the copy. The store is asked first, so that a wrong
    name is met before the work.

    Raises:
        CacheError: The store does not answer, or its object is not what was drawn here for it.
    """
    part = unfinished(url)
    store, name, shown = _store(url)
    there = _object(store, name, shown)
    if not part.exists():
        return part if there is None else fetched(url)
    if there is not None and not _holds(store, name, shown, there, part):
        raise _occupied(shown, part)
    return part


def is_copy(path: Path) -> bool:
    """Whether a `work_file` is the copy of an object, and nothing is left to draw or upload."""
    return not path.name.startswith(_UNFINISHED)


def deliver(part: Path, url: str) -> None:
    """Uploads what was drawn in `work_file(url)`, which then is the local copy of the object.

    Raises:
        CacheError: The store did not take it, or holds something else, and the file stays; or
            the disk is full.
    """
    if is_copy(part):
        return
    try:
        there = _put(part, url, overwrite=False)
    except (CacheError, KeyboardInterrupt) as error:
        kept = (
            f"All images are drawn and safe in {part}. Run the same again: only the upload is left."
        )
        if isinstance(error, KeyboardInterrupt):
            error.args = (kept,)
            raise
        raise CacheError(f"{error} {kept}") from error
    copy, url = _place(url, None), without_secrets(url)
    try:
        with claimed(copy, patience=math.inf):
            _record_path(copy).unlink(missing_ok=True)
            os.replace(part, copy)
            _record(copy, url, there)
    except OSError as error:
        raise CacheError(
            f"{url} is whole in the store, but that cannot be noted in {copy.parent}: "
            f"{error.strerror}. Make room there, and run the same again: nothing is drawn anew."
        ) from error
    logger.info("%s: uploaded and compared; the local copy is %s", url, copy)


def _put(path: Path, url: str, overwrite: bool) -> dict[str, Any]:
    """Makes an object of a file unless it is there, compares both, and returns its mark."""
    store, name, url = _store(url)
    there = _object(store, name, url)
    same = there is not None and _holds(store, name, url, there, path)
    if there is not None and not same and not overwrite:
        raise _occupied(url, path)
    if not same:
        try:
            with _asking(url):
                _send(store, path, name, new=there is None)
                there = _identity(store, name)
        except CacheError:
            now = None if there is not None else _object(store, name, url)
            if now is None:
                raise
            if not _holds(store, name, url, now, path):  # another job was faster
                raise _occupied(url, path) from None
            there = now  # it is ours, and only the answer was lost
        same = _holds(store, name, url, there, path)
    if there is None or not same:
        raise CacheError(
            f"{url} does not hold the bytes of {path} after the upload. Delete that object, and "
            "make sure that nobody else writes it. Then try again."
        )
    return there


def _send(store: Any, path: Path, name: str, *, new: bool) -> None:
    """Uploads a file; a new object fails if another job made it meanwhile, where stores can tell.

    S3 and Google's decide it themselves, by `If-None-Match: *` and `ifGenerationMatch=0`, and file
    systems by the name, which is given once; of others fsspec looks once more just before.
    """
    from fsspec.implementations.local import LocalFileSystem

    if isinstance(store, LocalFileSystem):
        _copy_file(path, Path(name), new=new)
        return
    put = getattr(store, "_put_file", store.put_file)
    if new and "mode" in signature(put).parameters:
        try:
            store.put_file(os.fspath(path), name, mode="create")
            return
        except OSError as error:
            if error.errno != errno.ENOSYS:  # 501, of stores that know no conditions
                raise
    store.put_file(os.fspath(path), name)


def _copy_file(path: Path, target: Path, *, new: bool) -> None:
    """Copies to where a `file://` URL leads, in one step for whoever reads there; a CacheError if
    the name of a new file was taken meanwhile."""
    if new:
        with new_file(target) as fd, open(fd, "wb", closefd=False) as copy, path.open("rb") as file:
            shutil.copyfileobj(file, copy, _BLOCK)
    else:
        with whole_file(target) as temporary:
            shutil.copyfile(path, temporary)


def _object(store: Any, name: str, url: str) -> dict[str, Any] | None:
    """Returns the mark of an object; `None` if there is none of that name."""
    with _asking(url):
        try:
            return _identity(store, name)
        except FileNotFoundError as error:
            if _is_network_fault(error.__cause__):
                raise
            return None


def _holds(store: Any, name: str, url: str, there: dict[str, Any], path: Path) -> bool:
    """Whether an object has the bytes of a file."""
    if there["size"] != path.stat().st_size:
        return False
    with _asking(url):
        facts = store.info(name)
    told = {str(facts.get(key)).strip('"') for key in ("ETag", "etag", "md5Hash", "content_md5")}
    if told & _sums(path):
        return True
    # An ETag may be something else than an MD5, so that another one says nothing.
    with (
        _asking(url),
        store.open(name, "rb", block_size=_BLOCK, cache_type="none") as source,
        path.open("rb") as file,
    ):
        while block := file.read(_BLOCK):
            if source.read(len(block)) != block:
                return False
    return True


def _sums(path: Path) -> set[str]:
    """The MD5 of a file as stores tell it, and that of S3 if it came in parts."""
    whole, parts = hashlib.md5(usedforsecurity=False), []
    with path.open("rb") as file:
        while block := file.read(_PART):
            whole.update(block)
            parts.append(hashlib.md5(block, usedforsecurity=False).digest())
    of_parts = hashlib.md5(b"".join(parts), usedforsecurity=False).hexdigest()
    return {
        whole.hexdigest(),
        b64encode(whole.digest()).decode(),
        f"{of_parts}-{len(parts)}",
    }


def _occupied(url: str, path: Path) -> CacheError:
    return CacheError(
        f"{url} exists already, and is not {path}. Nothing was overwritten: choose another name, "
        "delete that object, or replace it with `synthaug.caches.upload(..., overwrite=True)`."
    )


def _place(url: str, local_dir: StrPath | None) -> Path:
    """Where the copy of a URL belongs: copies of equal names do not meet."""
    default = os.environ.get(_HOME) or "~/.cache/synthaug/remote"
    folder = Path(local_dir if local_dir is not None else default).expanduser().absolute()
    plain = without_secrets(url).rstrip("/").rpartition("/")[2]  # systems limit the bytes of a name
    name = re.sub(r"[^\w.\-]", "_", plain)[-_NAME:] or "cache.h5"
    return folder / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name}"


def _store(url: str) -> tuple[Any, str, str]:
    """The file system of fsspec, the name of the object in it, and the URL for messages."""
    shown = without_secrets(url)
    with from_extra("fsspec", f"{shown} needs fsspec", "remote"):
        from fsspec.core import url_to_fs
    try:
        store, name = url_to_fs(url)
    except ImportError as error:
        raise ImportError(f"{shown} needs another package. {error}") from error
    except ValueError as error:
        raise CacheError(f"{shown} cannot be opened: {error}.") from error
    return store, name, shown


def _identity(store: Any, name: str) -> dict[str, Any]:
    """Returns the mark of this version of an object: its size and the store's own mark."""
    store.invalidate_cache()
    facts = store.info(name)
    if facts.get("type") == "directory" or facts.get("size") is None:
        raise FileNotFoundError(name)
    marks = (
        *("ETag", "etag", "md5Hash", "checksum", "oid", "blob_id"),
        *("LastModified", "mtime", "created"),
    )
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
        _record(path, url, found)
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


def _record(path: Path, url: str, there: dict[str, Any]) -> None:
    """Notes which version of the object a whole copy is."""
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    record = {"url": url, "object": there, "fetched": when}
    write_text(_record_path(path), json.dumps(record))


def _record_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _recorded(path: Path) -> dict[str, Any] | None:
    """Returns the note about a whole copy; `None` if there is none, or not all of it."""
    try:
        record = parse_json(read_text(_record_path(path)))
        whole = path.stat().st_size == record["object"]["size"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record if whole and isinstance(record.get("fetched"), str) else None


def _note_upload(path: Path, url: str) -> None:
    try:
        write_text(_uploads_path(path), json.dumps([*dict.fromkeys([*uploaded_to(path), url])]))
    except OSError as error:
        logger.warning(
            "%s cannot be written (%s): `forget` will not know that %s was uploaded to %s.",
            *(_uploads_path(path), error.strerror, path, url),
        )


def _uploads_path(path: Path) -> Path:
    path = path.resolve()
    return path.with_name(f"{path.name}.uploads.json")


def uploaded_to(path: Path) -> list[str]:
    """URLs that a file was uploaded to, by the note beside it; none if there is no such note."""
    with suppress(OSError, ValueError):
        urls = parse_json(read_text(_uploads_path(path)))
        if isinstance(urls, list):
            return [url for url in urls if isinstance(url, str) and is_remote(url)]
    return []


def copied_from(path: Path) -> str | None:
    """The URL of the object that a file is a copy of, without what it may hold of signatures;
    `None` if no note beside the file says so."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        url = parse_json(read_text(_record_path(path.resolve())))["url"]
        return url if isinstance(url, str) and is_remote(url) else None
    return None


def _is_network_fault(error: BaseException | None) -> bool:
    """Whether it is why an object was not found: over HTTP fsspec says so of every fault."""
    return isinstance(error, OSError) and not isinstance(error, FileNotFoundError)


def _not_stored(url: str, path: Path, error: OSError, remedy: str = "Choose") -> CacheError:
    return CacheError(
        f"Cannot copy {url} to {path}: {error.strerror}. {remedy} another folder with `local_dir`."
    )


@contextmanager
def _asking(url: str) -> Iterator[None]:
    """Names the URL in whatever a store raises; each kind has errors of its own."""
    try:
        yield
    except CacheError:  # of a file system, and named already
        raise
    except Exception as error:
        raise _unreachable(url, error) from error


def _unreachable(url: str, error: Exception) -> CacheError:
    return CacheError(
        f"{url} cannot be reached: {_reason(error)}. Check the name, your credentials and the "
        "network, then try again: what is at hand stays."
    )


def _reason(error: Exception) -> str:
    return without_secrets(f"{type(error).__name__}: {error}").rstrip(".:")
