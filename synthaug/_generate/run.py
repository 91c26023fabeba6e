"""Fills a cache: plan x synthesizer -> images.

The cache holds the plan and the state of every row, so it is also the record of what is left to do:
a job that was killed is simply run again.
"""

import logging
import os
from pathlib import Path
from typing import Any, Literal

from synthaug._cache import State, SynthCache
from synthaug._cache.encodings import Encoding
from synthaug._cache.files import filling, parts_folder
from synthaug._cache.remote import deliver, is_copy, unfinished, work_file
from synthaug._cache.synthesizer import Declared, Synthesizer, as_recorded
from synthaug._cluster import RayEngine, Share
from synthaug._generate.actors import draw_on_ray, pack
from synthaug._generate.draw import check_plan, checked_draw, fill
from synthaug._generate.parts import assemble, left, mend, parts_of
from synthaug._generate.shards import draw_share
from synthaug._images.source import ImageSource
from synthaug._plan import Plan
from synthaug._support.arguments import check_choice, check_whole
from synthaug._support.precision import recorded_precision
from synthaug._support.progress import bar
from synthaug._support.reading import is_remote, without_secrets
from synthaug._support.stopping import kept_at_stop
from synthaug._types import StrPath
from synthaug.errors import CacheError, MismatchError

logger = logging.getLogger("synthaug")

_TRIED = 1000
"""Rows from which a synthesizer may choose those that it tries before the job."""


def generate(
    synthesizer: Synthesizer,
    plan: Plan,
    path: StrPath,
    *,
    batch_size: int = 64,
    engine: Literal["local", "torchrun", "ray"] | RayEngine = "local",
    shard: str | None = None,
    source: Any = None,
    license: dict[str, str | None] | None = None,
    command: str | None = None,
    encoding: str | None = None,
    wait: bool = False,
    progress: bool = True,
) -> SynthCache:
    """Draws every row of `plan` that is not yet in the cache at `path`.

    The file is laid out whole before the first image is stored, so a full disk is met at once. Rows
    are stored as they are drawn; killed at any time and run again, the job continues, and its
    result equals that of an uninterrupted run. Rows that were damaged meanwhile are drawn anew.

    Args:
        synthesizer: Has `draw(rows)` and `recipe()`.
        plan: One row per image, made for this synthesizer.
        path: The cache, an HDF5 file; created, or continued if it is of the same plan and recipe.
            Or a URL that fsspec opens ("s3://bucket/cifar.h5"): it is drawn in a local file, put
            into the store when it is whole, and compared with what the store then holds.
        batch_size: Rows per call of `draw`. Does not change the images. Halved if memory runs out.
        engine: "local" draws in this process. "torchrun" draws the share of this rank, by RANK and
            WORLD_SIZE. "ray", or a `RayEngine` with its settings, spreads the work over the actors
            of a Ray cluster, and makes up for actors and nodes that are lost.
        shard: "1/3", "2/3" or "3/3": draw this share alone, as one task of a job array.
        source: The real data set that was used, for the record; its `fingerprint` is stored.
        license: `{"generator": ..., "source": ...}`, stored and shown with the cache.
        command: The command line that asked for it, for the record.
        encoding: How the cache stores the images: "raw" pixels, lossless "png" or "webp", or
            "jpeg:95" with any quality, which loses some detail. By default that of the cache that
            is continued; of a new one raw up to 128 pixels, "webp" above.
        wait: If another job fills the cache, wait until it has ended.
        progress: Show a bar with rate and time left.

    Returns:
        The cache, with every row done (or withdrawn earlier). For a rank or a shard that ends while
        others draw, rows stay pending until the last of them has put all shares together.

    Raises:
        TypeError: If `synthesizer` or `plan` has the wrong type.
        ValueError: If the plan is empty or was made with other settings or classes, `draw` returns
            something that is not images in [-1, 1], or images of a pipeline depend on more than
            their row.
        MismatchError: If the file belongs to another plan or recipe; it is left untouched.
        CacheError: If the disk cannot hold the file, or another job fills it and `wait` is false;
            if a store does not answer, or has another object of that name.
        DivergedError: If an image is not finite. Rows already done stay.
        EngineError: If Ray's actors find no place, cannot load the synthesizer, or die on the same
            row again and again. Rows already done stay.
        ImportError: If `engine` is "ray" and Ray is not installed.
    """
    check_whole(1, batch_size=batch_size)
    if encoding is not None:
        Encoding.parse(encoding)
    share = _share(engine, shard)
    check_plan(synthesizer, plan)
    place = unfinished(str(path)) if is_remote(path) else path
    with (
        filling(place, shared=share is not None, wait=wait),
        kept_at_stop(lambda: _drawn_rows(place, len(plan))),
    ):
        if is_remote(path):  # only now: another job may have put it there while we waited
            place = _place_for(str(path), share)
        try:
            cache = _filled(
                synthesizer,
                plan,
                place,
                engine=RayEngine() if engine == "ray" else engine,
                share=share,
                batch_size=batch_size,
                progress=progress,
                record={
                    "source": source,
                    "license": license,
                    "command": command,
                    "encoding": encoding,
                },
            )
        except MismatchError as error:
            shown = without_secrets(str(path))
            if place == path or is_copy(Path(place)):
                raise MismatchError(str(error).replace(str(place), shown)) from error
            raise MismatchError(f"{error} It holds what was drawn for {shown} before.") from error
        if place == path:
            return cache
        del cache  # some systems move no file that is mapped
        deliver(Path(place), str(path))
    return SynthCache(path)


def _place_for(url: str, share: Share | None) -> Path:
    """The local file to draw what goes into a store.

    Raises:
        ValueError: Several processes draw, which may be on machines that share no folder.
        CacheError: The store does not answer, or has something else of that name.
    """
    if share is not None:
        raise ValueError(
            f"{url} is a URL, and the parts of several processes meet in a folder. Draw to a path "
            "that all of them see, then use `synthaug.caches.upload`."
        )
    place = work_file(url)
    if is_copy(place) and SynthCache(place).counts()[State.PENDING]:
        raise CacheError(
            f"{url} holds a cache with rows that are still to be drawn, and objects of a store are "
            "not written. Copy it to this machine, continue it by its path, and put it back with "
            "`synthaug.caches.upload(..., overwrite=True)`."
        )
    return place


def _filled(
    synthesizer: Synthesizer,
    plan: Plan,
    path: StrPath,
    *,
    engine: str | RayEngine,
    share: Share | None,
    batch_size: int,
    progress: bool,
    record: dict[str, Any],
) -> SynthCache:
    """The cache at a local path with all its rows; `record` holds arguments of `open_cache`."""
    synthesizer, plan = as_begun(synthesizer, plan, path)
    _try_rows(synthesizer, plan, path)
    parcel = pack(synthesizer, engine) if isinstance(engine, RayEngine) else b""
    cache = open_cache(synthesizer, plan, path, **record)
    mend(cache)
    pending = cache.rows_in(State.PENDING)
    shape = "x".join(map(str, cache.image_shape))
    text = f"{len(pending):,} of {len(plan):,} rows to draw, {shape} each"
    logger.info("%s: %s", path, text)
    if not len(pending):
        if parts_folder(cache.path).exists():  # a kill came when all was there, and no sooner
            assemble(parts_of(cache.path, len(cache)), cache)
    elif isinstance(engine, RayEngine):
        draw_on_ray(synthesizer, cache, engine, parcel, batch_size=batch_size, progress=progress)
    elif share is not None or parts_folder(cache.path).exists():  # others may have begun it
        share = share or Share(0, 1)
        draw_share(synthesizer, cache, share, batch_size=batch_size, progress=progress)
    else:
        done = len(plan) - len(pending)
        with bar(len(plan), "generate", "image", initial=done, progress=progress) as shown:
            fill(synthesizer, cache, pending, batch_size=batch_size, drawn=shown.update)
    return cache


def _try_rows(synthesizer: Synthesizer, plan: Plan, path: StrPath) -> None:
    """Tries some rows of a job that is about to begin, if the synthesizer draws by foreign code."""
    check = Declared.by(synthesizer).check_rows
    if check is not None and len(plan) and not os.path.exists(path):
        check(plan[:_TRIED])


def _drawn_rows(path: StrPath, rows: int) -> str:
    """Says how many rows of the job are drawn; "" if none are."""
    if not os.path.exists(path):
        return ""
    whole = SynthCache(path)
    drawn = rows - sum(len(left(part, whole)) for part in parts_of(whole.path, rows))
    return f"{drawn:,} of {rows:,} images are drawn: {path}." if drawn else ""


def _share(engine: Any, shard: str | None) -> Share | None:
    """The share of the job that is this process's own, if it is not the whole."""
    if not isinstance(engine, RayEngine):
        check_choice(("local", "torchrun", "ray"), "Or give a `RayEngine`.", engine=engine)
    if shard is not None and engine != "local":
        raise ValueError(
            "`shard` is for processes that are started by hand, and `engine` starts its "
            "own. Leave one of them out."
        )
    if engine == "torchrun":
        return Share.of_this_rank()
    return None if shard is None else Share.parse(shard)


def as_begun(synthesizer: Synthesizer, plan: Plan, path: StrPath) -> tuple[Synthesizer, Plan]:
    """The synthesizer and its plan in the precision of the cache at `path`, if there is one.

    This changes what `from_pretrained` chose for the device (`dtype="auto"`), and nothing else.

    Raises:
        TypeError, ValueError: Under the same conditions as `check_plan`.
        MismatchError: If the plan cannot be made for the other precision.
    """
    check_plan(synthesizer, plan)
    if not os.path.exists(path):
        return synthesizer, plan
    recipe = SynthCache(path).manifest["recipe"]
    there = as_recorded(synthesizer, recipe)
    if there is synthesizer:
        return synthesizer, plan
    if plan.base_seed is None:
        dtype = recorded_precision(recipe["settings"])
        raise MismatchError(
            f"{path} was begun in {dtype}, which was chosen on another machine. Load the "
            f"synthesizer with `dtype={dtype!r}`, and make the plan anew with it."
        )
    return there, plan.with_settings(recipe["settings"])


def open_cache(
    synthesizer: Synthesizer,
    plan: Plan,
    path: StrPath,
    *,
    source: Any = None,
    license: dict[str, str | None] | None = None,
    command: str | None = None,
    encoding: str | None = None,
) -> SynthCache:
    """The cache that `generate` fills, laid out or continued; arguments and errors as there."""
    check_plan(synthesizer, plan)
    if not len(plan):
        raise ValueError("`plan` has no rows.")
    declared = Declared.by(synthesizer)
    shape: tuple[int, ...] | None = declared.image_shape
    if shape is None and os.path.exists(path):
        shape = SynthCache(path).image_shape
    if shape is None:  # a user's synthesizer need not say: its first image does
        shape = tuple(checked_draw(synthesizer, plan[:1], None).shape[1:])
    manifest: dict[str, Any] = {"recipe": synthesizer.recipe()}
    if declared.trained_on is not None:
        manifest["trained_on"] = dict(declared.trained_on)
    real = None if source is None else ImageSource(source, "`source`")
    if real is not None and real.fingerprint is not None:
        manifest["source"] = real.record
    if license is not None:
        manifest["license"] = license
    if command is not None:
        manifest["command"] = command
    existed = os.path.exists(path)
    stored: dict[str, Any] = {"image_shape": shape, "manifest": manifest, "encoding": encoding}
    try:
        return SynthCache.open_for_writing(path, plan, **stored)
    except (CacheError, MismatchError):
        if existed or not os.path.exists(path):
            raise
        return SynthCache.open_for_writing(path, plan, **stored)  # another rank was faster
