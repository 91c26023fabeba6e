"""Estimates what drawing many images will cost, from a rate that is measured on a few."""

import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from synthaug._cache import SynthCache
from synthaug._cache.format import data_sets
from synthaug._generate.draw import checked_draw, fill
from synthaug._plan import REQUIRED, Plan, bytes_text, time_text
from synthaug._support.arguments import check_positive
from synthaug._types import ImageShape, Indices

_GOLDEN = (5**0.5 - 1) / 2
"""Its multiples modulo 1 are spread evenly, however many there are."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Estimated cost of a job.

    Times assume that a device draws as fast as the one that was measured, and that each draws as
    many images as the others, one after the other.
    """

    rows: int
    """Images."""
    bytes: int
    """Size of the cache: images, labels, the plan, states and checksums."""
    disk_bytes: int
    """The most that is on the disk: several processes draw parts of the cache, which are copied."""
    network_evaluations: int
    """Forward passes of one image through the network."""
    devices: int
    """That draw at the same time."""
    seconds: float | None
    """From the start to the last image; `None` without a rate."""

    @property
    def device_hours(self) -> float | None:
        """Hours that are paid for: of all devices together."""
        return None if self.seconds is None else self.seconds * self.devices / 3600

    def __str__(self) -> str:
        text = (
            f"{self.rows:,} images, {bytes_text(self.bytes)}, "
            f"{self.network_evaluations:,} network evaluations"
        )
        if self.seconds is None:
            return text
        text += f", {time_text(self.seconds)}"
        hours = self.device_hours
        if hours is not None and self.devices > 1:
            digits = 2 if hours < 10 else 0
            text += f" on {self.devices:,} devices, {hours:,.{digits}f} device hours"
        return text


def estimate_cost(
    images: int,
    image_shape: ImageShape,
    *,
    evaluations_per_image: float = 1,
    evaluations_per_second: float | None = None,
    devices: int = 1,
    parameters: int = 0,
    startup_seconds: float = 0,
) -> Cost:
    """Predicts what a job will cost; there need not be a plan yet.

        rate = synthaug.caches.evaluations_per_second(synthesizer, synthesizer.plan(per_class=10))
        print(synthaug.caches.estimate_cost(1_281_167, (3, 256, 256), evaluations_per_image=50,
                                     evaluations_per_second=rate, devices=64))

    Seconds are `startup + ceil(images / devices) * evaluations per image / evaluations per second`.

    Args:
        images: Rows of the plan.
        image_shape: (C, H, W).
        evaluations_per_image: Network evaluations: about the steps, twice that with guidance. The
            mean of `synthesizer.evaluations(plan)`.
        evaluations_per_second: Rate of one device, at the batch size of the job.
        devices: Number of devices that draw in parallel.
        parameters: Columns of the plan besides those that every plan has.
        startup_seconds: Until a process draws its first image: libraries, weights, compilation.

    Raises:
        ValueError: For a number that is not positive.
    """
    check_positive(images=images, devices=devices)
    check_positive(evaluations_per_image=evaluations_per_image)
    check_positive(evaluations_per_second=evaluations_per_second)
    names = [*REQUIRED[1:], *map(str, range(parameters))]  # a cache has its labels once
    layout = data_sets(images, image_shape, {name: np.dtype(np.int64) for name in names})
    size = sum(dtype.itemsize * math.prod(shape) for dtype, shape in layout.values())
    seconds = None
    if evaluations_per_second is not None:
        each = math.ceil(images / devices) * evaluations_per_image
        seconds = startup_seconds + each / evaluations_per_second
    return Cost(
        rows=images,
        bytes=size,
        disk_bytes=size * (2 if devices > 1 else 1),
        network_evaluations=round(images * evaluations_per_image),
        devices=devices,
        seconds=seconds,
    )


def evaluations_per_second(
    synthesizer: Any, plan: Plan, *, batch_size: int = 64, seconds: float = 30
) -> float:
    """Network evaluations of one image per second, measured by drawing rows of a plan.

    Arguments are those of `drawing_time`.
    """
    rows, taken = drawing_time(synthesizer, plan, batch_size=batch_size, seconds=seconds)
    return int(np.sum(synthesizer.evaluations(plan[rows]))) / taken


def drawing_time(
    synthesizer: Any, plan: Plan, *, batch_size: int = 64, seconds: float = 30
) -> tuple[Indices, float]:
    """Draws rows of a plan as `generate` would, checks and writing included, into a file that is
    deleted.

    Args:
        synthesizer: Where and as it will draw.
        plan: Batches are rows in a row, as in the job, at places all over the plan, for rows may
            have different settings.
        batch_size: Batch size of the job: small batches waste any device. On a device so slow that
            a whole batch might not be drawn in time, batches begin with one row and double.
        seconds: How long to draw at most, after a row that warms up; one more at least. A tenth of
            it is enough for whole batches.

    Returns:
        Numbers of the rows of the largest batches, int64 (n,), and the seconds that they took. The
        first batch of a size, in which libraries choose their kernels, does not count if there are
        more.
    """
    whole = min(batch_size, len(plan))
    shape = checked_draw(synthesizer, plan[:1], None).shape[1:]
    begun, number, size = time.perf_counter(), 0, 1
    batches: list[tuple[Indices, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        while True:
            start = int(number * _GOLDEN % 1 * (len(plan) - size + 1))
            rows = np.arange(start, start + size)
            taken = _taken(synthesizer, plan[rows], shape, Path(folder) / f"{number}.h5")
            batches.append((rows, taken))
            number += 1
            elapsed = time.perf_counter() - begun
            if size == whole:
                if elapsed + taken > seconds / 10 or len(batches) * size >= len(plan):
                    break
            elif elapsed + 2 * taken <= seconds:
                # A large batch takes no longer for each row than a small one.
                fits = elapsed + taken * whole / size <= seconds
                size, batches = whole if fits else min(2 * size, whole), []
            else:
                break
    counted = batches[1:] or batches
    return np.concatenate([rows for rows, _ in counted]), sum(taken for _, taken in counted)


def _taken(synthesizer: Any, rows: Plan, shape: tuple[int, ...], path: Path) -> float:
    """Seconds in which one batch is drawn into a cache at `path`, which is deleted."""
    cache = SynthCache.create(path, rows, image_shape=shape, manifest={"recipe": {}})
    started = time.perf_counter()
    fill(synthesizer, cache, np.arange(len(rows)), batch_size=len(rows))
    taken = time.perf_counter() - started
    path.unlink()
    return taken
