"""Batches with exact shares of real and synthetic images."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from synthaug._datasets._mixed import MixedDataset, shuffled
from synthaug._noise import counter_rng

_BATCHES = 3  # a stream of random numbers that `MixedDataset` does not use


class MixedBatchSampler(Sampler[list[int]]):
    """Batches with exactly so many synthetic images each, for a `MixedDataset` that appends.

        mixed = MixedDataset(real, cache, audit=report, mode="append", ratio=1.0)
        sampler = MixedBatchSampler(mixed, batch_size=128, synthetic_per_batch=64)
        loader = DataLoader(mixed, batch_sampler=sampler)

    An epoch has every real image once. In a batch the real ones come first. The last batch may be
    shorter; its synthetic share is the same, to the nearest whole image. The order is a function of
    (seed, epoch), and the epoch is that of `mixed`.

    `mixed` must append enough: `ratio` at least synthetic / real per batch. If it appends more,
    each epoch takes a random part.
    """

    def __init__(
        self,
        mixed: MixedDataset,
        batch_size: int,
        synthetic_per_batch: int,
        *,
        seed: int = 0,
        drop_last: bool = False,
    ) -> None:
        """Counts the batches.

        Args:
            mixed: With `mode="append"`.
            batch_size: Images per batch.
            synthetic_per_batch: How many of them are synthetic, in [0, batch_size).
            seed: Of the order.
            drop_last: Leaves a shorter last batch away, and so the real images in it.

        Raises:
            TypeError: If `mixed` is not a `MixedDataset`.
            ValueError: If `mixed` replaces, or appends too little, or the numbers make no sense.
        """
        if not isinstance(mixed, MixedDataset):
            raise TypeError(f"`mixed` is a {type(mixed).__name__}, expected a MixedDataset.")
        if not 0 <= synthetic_per_batch < batch_size:
            raise ValueError(
                f"`synthetic_per_batch` must be in [0, {batch_size}), below the batch size; got "
                f"{synthetic_per_batch}."
            )
        if mixed.mode != "append":
            raise ValueError(
                "`mixed` replaces images at random. For exact counts make it with "
                f'mode="append" and ratio={synthetic_per_batch}/{batch_size - synthetic_per_batch}.'
            )
        self.mixed, self.batch_size, self.seed = mixed, batch_size, seed
        self.synthetic_per_batch, self.drop_last = synthetic_per_batch, drop_last
        per_batch = batch_size - synthetic_per_batch
        self._num_real = len(mixed.synthetic_rows()) - int(mixed._quota.sum())
        available = len(mixed) - self._num_real
        full, rest = divmod(self._num_real, per_batch)
        self._counts = [(per_batch, synthetic_per_batch)] * full
        if rest and not drop_last:
            left = available - full * synthetic_per_batch
            self._counts.append((rest, _nearest(rest * synthetic_per_batch, per_batch, left)))
        needed = sum(s for _, s in self._counts)
        if needed > available:
            raise ValueError(
                f"`mixed` appends {available} synthetic images to {self._num_real} real ones, "
                f"these batches need {needed}. Make it with "
                f"ratio={synthetic_per_batch}/{per_batch}."
            )

    def set_epoch(self, epoch: int) -> None:
        """Changes the order, and the images of `mixed`."""
        self.mixed.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self._counts)

    def __iter__(self) -> Iterator[list[int]]:
        rng = counter_rng(self.seed, _BATCHES, self.mixed.epoch)
        real = shuffled(rng, np.arange(self._num_real))
        fake = shuffled(rng, np.arange(self._num_real, len(self.mixed)))
        r = s = 0
        for num_real, num_synthetic in self._counts:
            yield [*real[r : r + num_real].tolist(), *fake[s : s + num_synthetic].tolist()]
            r, s = r + num_real, s + num_synthetic


def _nearest(numerator: int, denominator: int, limit: int) -> int:
    """The whole number nearest to a fraction; of two equally near ones, one within the limit."""
    down, rest = divmod(numerator, denominator)
    if 2 * rest == denominator:
        return down + (down < limit)
    return down + (2 * rest > denominator)
