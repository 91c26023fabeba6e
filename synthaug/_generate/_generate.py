"""Fills a cache: plan x synthesizer -> images.

The cache holds the plan and the state of every row, so it is also the record of what is left to do:
a job that was killed is simply run again.
"""

import logging
import os
from typing import Any

import numpy as np

from synthaug._cache import SynthCache
from synthaug._generate._draw import Synthesizer, check_plan, checked_draw, fill
from synthaug._plan import Plan

logger = logging.getLogger("synthaug")


def generate(
    synthesizer: Synthesizer,
    plan: Plan,
    path: str | os.PathLike[str],
    *,
    batch_size: int = 64,
    source: Any = None,
    licence: dict[str, str | None] | None = None,
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
        batch_size: Rows per call of `draw`. Does not change the images.
        source: The real data set that was used, for the record; its `fingerprint` is stored.
        licence: `{"generator": ..., "source": ...}`, stored and shown with the cache.
        progress: Show a bar with rate and time left.

    Returns:
        The cache, with every row done (or withdrawn earlier).

    Raises:
        ValueError: If the plan is empty or was made with other settings or classes, or `draw`
            returns something that is not images in [-1, 1].
        CacheMismatchError: If the file belongs to another plan or recipe; it is left untouched.
        CacheError: If the disk cannot hold the file.
        DivergedError: If an image is not finite. Rows already done stay.
    """
    from tqdm.auto import tqdm

    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
    if not len(plan):
        raise ValueError("`plan` has no rows.")
    cache = open_cache(synthesizer, plan, path, source=source, licence=licence)
    damaged = cache.verify()
    if len(damaged):
        logger.warning("%s: %d rows are damaged and will be drawn anew", path, len(damaged))
        cache.invalidate(damaged)
    pending = np.flatnonzero(cache.state == 0)
    logger.info(
        "%s: %s of %s rows to draw, %s each",
        path,
        f"{len(pending):,}",
        f"{len(plan):,}",
        "x".join(map(str, cache.image_shape)),
    )
    with tqdm(
        total=len(plan),
        initial=len(plan) - len(pending),
        desc="generate",
        unit="image",
        disable=not progress or not len(pending),
    ) as bar:
        fill(synthesizer, cache, pending, batch_size=batch_size, drawn=bar.update)
    return cache


def open_cache(
    synthesizer: Synthesizer,
    plan: Plan,
    path: str | os.PathLike[str],
    *,
    source: Any = None,
    licence: dict[str, str | None] | None = None,
) -> SynthCache:
    """The cache that `generate` fills, laid out or continued; arguments and errors as there."""
    check_plan(synthesizer, plan)
    shape = getattr(synthesizer, "image_shape", None)
    if shape is None and os.path.exists(path):
        shape = SynthCache(path).image_shape
    if shape is None:  # a user's synthesizer need not say: its first image does
        shape = tuple(checked_draw(synthesizer, plan[:1], None).shape[1:])
    manifest: dict[str, Any] = {"recipe": synthesizer.recipe()}
    trained_on = getattr(synthesizer, "trained_on", None)
    if trained_on is not None:
        manifest["trained_on"] = dict(trained_on)
    fingerprint = getattr(source, "fingerprint", None)
    if fingerprint is not None:
        manifest["source"] = {"fingerprint": fingerprint, "images": len(source)}
    if licence is not None:
        manifest["licence"] = licence
    return SynthCache.open_for_writing(path, plan, image_shape=shape, manifest=manifest)
