"""Looking after caches: merge them, import foreign images, compare them with their sources."""

import logging
import math
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from synthaug._cache.compare import listed, manifest_differences, shape_differences
from synthaug._cache.encodings import Encoding
from synthaug._cache.files import filling, refuse_remote
from synthaug._cache.format import State, blocks
from synthaug._cache.store import SynthCache
from synthaug._cache.tombstones import content_keys, rows_from_sources
from synthaug._images.leaves import numbered_classes
from synthaug._images.source import ImageSource
from synthaug._pixels import content_fingerprint, digest
from synthaug._plan import Plan
from synthaug._support.differences import described
from synthaug._support.progress import bar
from synthaug._support.stopping import kept_at_stop
from synthaug._types import Indices, StrPath, Unsigned
from synthaug.errors import CacheError, CachePendingError, MismatchError

_OWN = ("classes", "settings", "synthetic", "value_range", "command")

_SORTED = 2**23
"""Seeds that are sorted at once to find equal ones."""
_SPREADING = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio: upper bits vary


logger = logging.getLogger("synthaug")


def merge_rows(
    paths: Sequence[StrPath], out: StrPath, *, encoding: str | None = None, progress: bool = False
) -> SynthCache:
    """Copies the rows of several caches into one; `synthaug.caches.merge` says how."""
    if not paths:
        raise ValueError("`paths` names no cache. Name at least one.")
    resolved = [Path(path).resolve() for path in paths]
    for path in resolved:
        if resolved.count(path) > 1 or path == Path(out).resolve():
            raise ValueError(
                f"{path} is named twice. The caches to merge and the new one must be different "
                "files."
            )
    with warnings.catch_warnings():  # a compressed copy warns that it is slow: this is the remedy
        warnings.simplefilter("ignore")
        caches = [SynthCache(path) for path in paths]
    first = caches[0]
    stored = _encoding_for(caches, encoding)
    for cache in caches[1:]:
        _check_mergeable(first, cache, stored)
    for cache in caches:
        _ = cache.tombstones  # damaged ones are refused before a row that they name is copied
    plan = Plan.joined([cache.plan for cache in caches])
    _check_distinct(caches, plan)
    manifest = {k: v for k, v in first.manifest.items() if k not in _OWN}
    with filling(out), kept_at_stop(lambda: _copied(out)):
        merged = SynthCache.open_for_writing(
            out, plan, image_shape=first.image_shape, manifest=manifest, encoding=str(stored)
        )
        with bar(len(plan), "merge", "row", progress=progress) as shown:
            start = 0
            for cache in caches:
                copy_rows(cache, merged, start, shown.update)
                start += len(cache)
        merged.withdraw(rows_from_sources(plan, merged.tombstones))
        wrong = merged.verify()
        if len(wrong):
            raise CacheError(
                f"{merged.path}: {listed(wrong)} changed while being copied. Check the disk, "
                "delete the file and merge again."
            )
    return merged


def _encoding_for(caches: Sequence[SynthCache], encoding: str | None) -> Encoding:
    """The encoding of a merged cache: several without a choice are a MismatchError, a second loss
    of detail a ValueError."""
    first = caches[0]
    for other in caches[1:]:
        if encoding is None and other.encoding != first.encoding:
            raise MismatchError(
                f"{first.path} stores its images as {first.encoding}, {other.path} as "
                f"{other.encoding}. Choose one for the merged cache: `encoding={first.encoding!r}`."
            )
    chosen = Encoding.chosen(encoding or first.encoding, first.image_shape)
    for cache in caches:
        lost = cache.manifest.get("encoding")
        if chosen.lossy and cache.encoding != str(chosen) and lost is not None:
            raise ValueError(
                f"`encoding={str(chosen)!r}`: the images of {cache.path} lost detail as {lost} and "
                "would lose more. Choose 'webp', 'png' or 'raw'."
            )
    return chosen


def _check_mergeable(first: SynthCache, other: SynthCache, encoding: Encoding) -> None:
    ours, theirs = (
        # What all images go through now is no difference.
        {**cache.manifest, **({"encoding": str(encoding)} if encoding.lossy else {})}
        for cache in (first, other)
    )
    differences = {
        **manifest_differences(ours, theirs),
        **shape_differences(first.image_shape, other.image_shape),
    }
    columns = set(first.plan.columns) ^ set(other.plan.columns)
    if columns:
        differences["plan column"] = (min(columns), "not in both")
    if differences:
        names = f"in {first.path.name}", f"in {other.path.name}"
        raise MismatchError(
            f"{first.path} and {other.path} cannot become one cache:\n"
            f"{described(differences, *names)}\n"
            "Merge only parts of one job; `MixedDataset` takes one cache at a time."
        )


def _check_distinct(caches: Sequence[SynthCache], plan: Plan) -> None:
    """A row's seed is a hash of all that decides its image: equal seeds are the same image."""
    twice = _repeated(plan)
    if len(twice):
        found = [np.flatnonzero(seeds == twice[0]) + at for at, seeds in plan.pieces("seed")]
        ends = np.cumsum([len(cache) for cache in caches])
        pair = []
        for row in np.concatenate(found)[:2].tolist():
            part = int(np.searchsorted(ends, row, side="right"))
            pair.append(f"row {row - (ends[part - 1] if part else 0)} of {caches[part].path}")
        raise MismatchError(
            f"{pair[0]} and {pair[1]} are the same image, and {len(twice) - 1:,} more pairs are. "
            "Merge parts that do not overlap."
        )


def _repeated(plan: Plan) -> Unsigned:
    """The seeds that occur more than once, ascending, each once less than it occurs.

    All of many seeds do not fit into memory at once, so they are sorted in shares that are about
    equal, whatever the seeds are.
    """
    bits = max(1, math.ceil(math.log2(len(plan) / _SORTED)))
    repeated = []
    for share in range(2**bits):
        of_share = [
            seeds[seeds * _SPREADING >> np.uint64(64 - bits) == share]
            for _, seeds in plan.pieces("seed")
        ]
        seeds = np.sort(np.concatenate(of_share))
        repeated.append(seeds[1:][seeds[1:] == seeds[:-1]])
    return np.sort(np.concatenate(repeated))


def copy_rows(
    cache: SynthCache,
    merged: SynthCache,
    start: int,
    advance: Callable[[int], object] = lambda count: None,
) -> None:
    """Copies the rows of one cache into another, from row `start` on, that are not there yet.

    Withdrawals come last, so what is withdrawn while we copy is withdrawn in the copy too.
    """
    for one in (cache, merged):
        one.read_sequentially()
    done = cache.rows_in(State.DONE)
    advance(len(cache) - len(done))
    for rows in blocks(done, cache.image_shape):
        present = merged.state_of(rows + start)
        _copy_done(cache, merged, rows[present == State.PENDING], start)
        advance(len(rows))
    withdrawn = [np.empty(0, np.int64)]
    for rows in blocks(cache.rows_in(State.WITHDRAWN), cache.image_shape):
        present = merged.state_of(rows + start)
        withdrawn.append(rows[present != State.WITHDRAWN] + start)
    merged.withdraw(np.concatenate(withdrawn), forgotten=cache.tombstones)


def _copy_done(cache: SynthCache, merged: SynthCache, rows: Indices, start: int) -> None:
    """Copies the `rows` that are done: some may be withdrawn meanwhile."""
    while len(rows := rows[cache.state_of(rows) == State.DONE]):
        with suppress(CachePendingError):
            merged.copy_rows(cache, rows, start)
            return


def import_images(
    source: Any,
    out: StrPath,
    *,
    name: str = "unknown",
    license: dict[str, str | None] | None = None,
    forgotten: Iterable[StrPath] = (),
    encoding: str | None = None,
    command: str | None = None,
    progress: bool = False,
) -> SynthCache:
    """Makes a cache of synthetic images that someone else made, to audit and mix them.

        import_images("folder:downloads/synthetic-cifar", "foreign.h5", name="EDM, cifar10-cond")

    The digest of the images is among the plan's settings, so an audit report of other images never
    fits. Rows are ordered by class, and within a class as in `source`. What the images were derived
    from is not known: rows have no source, so `forget` and `SyntheticVariant` do not reach them.
    Images that were exported from a cache, and erased there since, are left out if it is named.

    Args:
        source: A map-style data set, or a specification such as "folder:PATH" (class folders).
        out: The new cache. Run again after a kill, it continues.
        name: Name of the generator, for the record.
        license: `{"generator": ..., "source": ...}`, for the record.
        forgotten: Caches whose tombstones to honor: images with the same pixels as one that was
            erased there become withdrawn rows.
        encoding: How the cache stores them, as for `SynthCache.create`.
        command: The command line that asked for it, for the record.
        progress: Show a bar.

    Raises:
        DataError: `source` cannot be read as labeled images of one shape.
        CacheError: `out` exists with other images, is filled by another job, or cannot be written,
            as a URL cannot.
    """
    refuse_remote(out)
    images = ImageSource.open(source, "`source`")
    labels, classes = images.labels, images.classes
    if classes is None:
        classes = numbered_classes(labels, "`source`")
    order = np.argsort(labels, kind="stable")  # as `Plan.build` lays out its rows
    keys = _keys(images, order)
    plan = Plan.build(
        np.bincount(labels, minlength=len(classes)),
        classes=classes,
        settings={"imported": content_fingerprint(keys)},
        seed=0,
    )
    with filling(out), kept_at_stop(lambda: _copied(out)):
        cache = SynthCache.open_for_writing(
            out,
            plan,
            image_shape=images.image_shape,
            manifest={
                "recipe": {"synthesizer": "imported", "settings": plan.settings, "name": name},
                "license": {"generator": None, "source": None, **(license or {})},
                "command": command,
            },
            encoding=encoding,
        )
        tombstones = [cache.tombstones, *(SynthCache(path).tombstones for path in forgotten)]
        gone = np.flatnonzero(np.isin(keys, np.concatenate(tombstones)))
        if len(gone):
            cache.withdraw(gone, forgotten=keys[gone])
            logger.warning(
                "%s: %s left out. An image that was forgotten is not imported again.",
                out,
                listed(gone),
            )
        pending = cache.rows_in(State.PENDING)
        with bar(len(plan), "import", "image", progress=progress) as shown:
            shown.update(len(plan) - len(pending))
            for rows in blocks(pending, images.image_shape):
                cache.write(rows, images.pixels(order[rows]), on_withdrawn="skip")
                shown.update(len(rows))
    return cache


def _copied(path: StrPath) -> str:
    """Says how many images an unfinished cache holds; "" if it holds none."""
    done = SynthCache(path).done if os.path.exists(path) else np.zeros(0, bool)
    return f"{done.sum():,} of {len(done):,} images are in {path}." if done.any() else ""


def _keys(images: ImageSource, order: Indices) -> Unsigned:
    """Content keys of the images in `order`, uint64 (n,)."""
    return np.concatenate(
        [content_keys(images.pixels(rows).numpy()) for rows in blocks(order, images.image_shape)]
    )


def check_sources(cache: SynthCache, real: Any) -> None:
    """Makes sure that `real` is the data set that the cache's images were derived from.

    Compares class names, and the content of every real image that a row starts from.

    Args:
        cache: A cache whose rows have sources; with none there is nothing to compare.
        real: The real data set, map-style.

    Raises:
        MismatchError: Names what differs (classes, order, edited or missing images) and the
            remedy.
    """
    images = ImageSource.open(real, "`real`")
    classes = images.classes
    if classes is not None and classes != cache.classes:
        raise MismatchError(
            f"{cache.path} was made for the classes {_few(cache.classes)}, the data set has "
            f"{_few(classes)}. Use the data set that the cache was generated from, or generate "
            "again."
        )
    source, key = cache.plan["source"], cache.plan["source_key"]
    sources, first = np.unique(source[source >= 0], return_index=True)
    if not len(sources):
        return
    expected = key[source >= 0][first]
    inside = sources < len(images)
    pieces = blocks(sources[inside], cache.image_shape)  # all at once may not fit in memory
    keys = np.array([digest(image) for some in pieces for image in images.pixels(some)], np.uint64)
    wrong = np.flatnonzero(keys != expected[inside])
    missing = int((~inside).sum())
    if not len(wrong) and not missing:
        return
    moved = np.isin(expected[inside][wrong], keys).sum()
    faults = {
        f"{missing:,} of its source images lie beyond the data set's end": missing,
        f"{moved:,} stand at other positions": moved,
        f"{len(wrong) - moved:,} have other pixels": len(wrong) - moved,
    }
    example = f" First: image {sources[inside][wrong[0]]}." if len(wrong) else ""
    raise MismatchError(
        f"{cache.path} was derived from {len(sources):,} images, of which in this data set "
        f"{'; '.join(text for text, count in faults.items() if count)}.{example} Use the data set "
        "that the cache was generated from, in the same order and size, or generate again."
    )


def _few(names: Iterable[str]) -> str:
    listed_names = list(names)
    more = ", ..." if len(listed_names) > 5 else ""
    return f"{', '.join(listed_names[:5])}{more} ({len(listed_names)})"
