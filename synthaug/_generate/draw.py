"""Drawing rows of a plan into a cache, and checks of what a synthesizer returns."""

import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from synthaug._cache import State, SynthCache
from synthaug._cache.format import ChosenRows
from synthaug._cache.synthesizer import Declared, Synthesizer
from synthaug._pixels import to_pixels
from synthaug._plan import Plan, canonical_json
from synthaug._support.arguments import check_type
from synthaug._support.memory import is_out_of_memory
from synthaug._types import Images, Indices
from synthaug.errors import DivergedError

logger = logging.getLogger("synthaug")


def fill(
    synthesizer: Synthesizer,
    cache: SynthCache,
    rows: Indices | ChosenRows,
    *,
    batch_size: int,
    seconds: float = math.inf,
    drawn: Callable[[int], object] = lambda count: None,
) -> tuple[int, int]:
    """Draws `rows` of the cache, and stores each batch as it is drawn.

    A batch for which there is not enough memory is halved, and so are those after it. Rows that are
    withdrawn meanwhile are left out, and counted.

    Args:
        synthesizer: Has the recipe of the cache.
        cache: The rows must be pending.
        rows: Row numbers.
        batch_size: Rows per call of `draw`.
        seconds: Time after which no further batch is begun.
        drawn: Called with the number of rows that were stored, after each batch.

    Returns:
        Number of rows that were drawn in that time, and the batch size that memory has allowed.

    Raises:
        Exception: Any error that `draw` raised; if memory did not suffice, for one row alone.
        ValueError, DivergedError: Under the same conditions as `checked_draw`.
    """
    start, end = 0, time.monotonic() + seconds
    while start < len(rows) and (not start or time.monotonic() < end):
        taken = rows[start : start + batch_size]
        batch = taken[cache.state_of(taken) != State.WITHDRAWN]
        if len(batch):
            try:
                images = checked_draw(synthesizer, cache.plan[batch], cache.image_shape)
            except Exception as error:
                if len(batch) == 1 or not is_out_of_memory(error):
                    raise
                batch_size = len(batch) // 2
                logger.warning("Out of memory: going on with batches of %d.", batch_size)
                continue
            cache.write(batch, to_pixels(images), on_withdrawn="skip")
        drawn(len(taken))
        start += len(taken)
    return start, batch_size


def check_plan(synthesizer: Synthesizer, plan: Plan) -> None:
    """Refuses a plan that was made with other settings or classes than the synthesizer's.

    Raises:
        TypeError: If `synthesizer` or `plan` has the wrong type.
        ValueError: Naming what differs.
    """
    check_type(Synthesizer, "one with `draw(rows)` and `recipe()`", synthesizer=synthesizer)
    check_type(Plan, "a Plan: `synthesizer.plan(...)` or `synthaug.Plan.build(...)`", plan=plan)
    _check_settings(plan, synthesizer.recipe())
    classes = tuple(Declared.by(synthesizer).classes or ())
    if classes and classes != plan.classes:
        raise ValueError(
            f"The plan is about the classes {', '.join(plan.classes)}; the synthesizer knows "
            f"{', '.join(classes)}. Make the plan with the synthesizer that draws it."
        )


def _check_settings(plan: Plan, recipe: Mapping[str, Any]) -> None:
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
        rows: Rows of a plan.
        shape: (C, H, W) that is expected, if it is known.

    Returns:
        On the CPU.

    Raises:
        ValueError, DivergedError: Under the same conditions as `generate`.
    """
    images = synthesizer.draw(rows)
    name = type(synthesizer).__name__
    if not (isinstance(images, torch.Tensor) and images.is_floating_point() and images.ndim == 4):
        is_array = isinstance(images, torch.Tensor | np.ndarray)
        kind = images.dtype if is_array else type(images).__name__
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
