"""Estimates what drawing many images will cost, from a rate that is measured on a few."""

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from synthaug._cache.format import data_sets
from synthaug._plan import REQUIRED, Plan, bytes_text, time_text
from synthaug._support.arguments import check_positive
from synthaug._types import ImageShape


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
    synthesizer: Any, plan: Plan, *, batch_size: int = 64, seconds: float = 3
) -> float:
    """Network evaluations of one image per second, measured by drawing rows of a plan.

    Args:
        synthesizer: Where and as it will draw.
        plan: Rows are taken evenly from all of it, for they may have different settings.
        batch_size: Batch size of the job: small batches waste a large device. Batches begin with
            one row and
            double, as far as there is time, so that slow devices are not asked for whole ones.
        seconds: How long to draw, after a row that warms up; one more at least.
    """
    from synthaug._pixels import to_pixels

    def batch(number: int, size: int) -> Plan:
        apart = max(1, len(plan) // size)
        return plan[(number + apart * np.arange(size)) % len(plan)]

    synthesizer.draw(batch(0, 1))
    begun = before = started = time.perf_counter()
    size, number, count = 1, 0, 0
    while True:
        rows = batch(number, size)
        to_pixels(synthesizer.draw(rows).cpu())  # the transfer waits for the device
        now = time.perf_counter()
        last, before = now - before, now
        count, number = count + int(np.sum(synthesizer.evaluations(rows))), number + 1
        if size < batch_size and now - begun + 2 * last <= seconds:
            size, started, count, number = min(2 * size, batch_size), now, 0, 0
        elif size < batch_size or now - begun + last > seconds or number * size >= len(plan):
            return count / (now - started)
