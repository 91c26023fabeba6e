"""Fills a cache: plan x synthesizer -> images.

The cache holds the plan and the state of every row, so it is also the record of what is left to do:
a job that was killed is simply run again.
"""

import logging
import os
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from synthaug._cache import SynthCache
from synthaug._errors import DivergedError
from synthaug._pixels import to_pixels
from synthaug._plan import Plan, canonical_json
from synthaug._types import JSON, Images

logger = logging.getLogger("synthaug")


class Synthesizer(Protocol):
    """All that `generate` asks of a synthesizer."""

    def draw(self, rows: Plan) -> Images:
        """One image per row, float (n, C, H, W) in [-1, 1]."""
        ...

    def recipe(self) -> dict[str, JSON]:
        """Everything besides the row that determines an image."""
        ...


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
    shape = cache.image_shape
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
        "x".join(map(str, shape)),
    )
    with tqdm(
        total=len(plan),
        initial=len(plan) - len(pending),
        desc="generate",
        unit="image",
        disable=not progress or not len(pending),
    ) as bar:
        for start in range(0, len(pending), batch_size):
            rows: NDArray[np.int64] = pending[start : start + batch_size]
            cache.write(rows, to_pixels(checked_draw(synthesizer, plan[rows], shape)))
            bar.update(len(rows))
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


def check_plan(synthesizer: Synthesizer, plan: Plan) -> None:
    """Refuses a plan that was made with other settings or classes than the synthesizer's.

    Raises:
        ValueError: Naming what differs.
    """
    _check_settings(plan, synthesizer.recipe())
    classes = tuple(getattr(synthesizer, "classes", ()))
    if classes and classes != plan.classes:
        raise ValueError(
            f"The plan is about the classes {', '.join(plan.classes)}; the synthesizer knows "
            f"{', '.join(classes)}. Make the plan with the synthesizer that draws it."
        )


def _check_settings(plan: Plan, recipe: dict[str, Any]) -> None:
    settings = recipe.get("settings")
    if not isinstance(settings, dict):
        raise ValueError(f"recipe()['settings'] must be a dict, got {settings!r}.")
    given, planned = (
        {k: canonical_json(v) for k, v in s.items()} for s in (settings, dict(plan.settings))
    )
    different = sorted(k for k in {*given, *planned} if given.get(k) != planned.get(k))
    if different:
        name = different[0]
        raise ValueError(
            f"The plan was made with other settings: {name} was {planned.get(name, 'not set')} and "
            f"is now {given.get(name, 'not set')}. Make the plan with this synthesizer."
        )


def checked_draw(synthesizer: Synthesizer, rows: Plan, shape: tuple[int, ...] | None) -> Images:
    """Draws, and checks what came back before it can reach a file or a training loop.

    Args:
        synthesizer: Has `draw(rows)`.
        rows: Of a plan.
        shape: (C, H, W) that is expected, if it is known.

    Returns:
        On the CPU.

    Raises:
        ValueError, DivergedError: As `generate`.
    """
    images = synthesizer.draw(rows)
    name = type(synthesizer).__name__
    if not (isinstance(images, torch.Tensor) and images.is_floating_point() and images.ndim == 4):
        kind = getattr(images, "dtype", type(images).__name__)
        raise ValueError(f"{name}.draw must return a float tensor (n, C, H, W), got {kind}.")
    expected = (len(rows), *(images.shape[1:] if shape is None else shape))
    if tuple(images.shape) != expected:
        raise ValueError(f"{name}.draw returned shape {tuple(images.shape)}, expected {expected}.")
    images = images.detach().cpu()
    finite = torch.isfinite(images).flatten(1).all(1)
    if not finite.all():
        raise DivergedError(
            f"{name}.draw returned {int((~finite).sum())} of {len(rows)} images that are not "
            f"finite; the first is of row {rows.row(int((~finite).nonzero()[0, 0]))}. Rows drawn "
            "before are kept. Use dtype float32, or a lower guidance scale."
        )
    largest = float(images.abs().max())
    if largest > 2:
        raise ValueError(f"{name}.draw returned values up to {largest:.3g}; images are in [-1, 1].")
    return images
